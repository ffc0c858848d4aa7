"""The PyTorch convention, against answers stored by golden/make_torch_….py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import norm
from stored_answers import load

import clipjax


def test_provenance():
    stored, script = load("torch_clip_grad_norm")
    assert stored["torch"].startswith("2.13.0")
    assert len(stored["cases"]) == script.CASES == 100


@functools.partial(jax.jit, static_argnums=2)
def update(grads, max_norm, norm_type):
    clip = clipjax.torch_clip_grad_norm(max_norm, norm_type)
    updates, state = clip.update(grads, None)
    return updates, state.clip_info.norm_before


@pytest.mark.parametrize("norm_type", ["1.0", "2.0", "3.0", "inf"])
def test_torch_clip_grad_norm(norm_type):
    stored, script = load("torch_clip_grad_norm")
    compared = 0
    for number, case in enumerate(stored["cases"]):
        if str(case["norm_type"]) != norm_type:
            continue
        grads = [jnp.asarray(gradient) for gradient in script.gradients(number)]
        updates, length = update(grads, case["max_norm"], float(norm_type))
        assert float(length) == pytest.approx(case["total_norm"], rel=1e-6)
        flat = np.concatenate([np.asarray(update).reshape(-1) for update in updates])
        np.testing.assert_allclose(flat, case["clipped"], rtol=1e-6)
        compared += 1
    assert compared == 25


def test_norm_type_inf_is_the_largest_magnitude_as_a_number_or_a_string():
    grads = [jnp.array([3.0, -8.0]), jnp.array([1.0])]
    for norm_type in (np.inf, float("inf"), "inf"):
        updates, _ = clipjax.torch_clip_grad_norm(2.0, norm_type).update(grads, None)
        assert norm(updates, np.inf) == pytest.approx(2, rel=1e-6)
    as_number = clipjax.torch_clip_grad_norm(2.0, np.inf)
    assert clipjax.torch_clip_grad_norm(2.0, "inf") == as_number
    assert clipjax.torch_clip_grad_norm(2.0) == clipjax.torch_clip_grad_norm(2.0, 2.0)


def test_other_norm_types_are_refused():
    accepted = "norm_type must be a number of at least 1, or inf"
    for wrong, error in [
        *((0.5, ValueError), (np.nan, ValueError), (-np.inf, ValueError)),
        *(("2", TypeError), (True, TypeError), ([2], TypeError)),
    ]:
        with pytest.raises(error, match=accepted) as raised:
            clipjax.torch_clip_grad_norm(1.0, wrong)
        assert repr(wrong) in str(raised.value)
