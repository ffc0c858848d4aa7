"""The PyTorch convention, against answers stored by golden/make_torch_….py."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax

pytestmark = pytest.mark.optimized

GOLDEN = pathlib.Path(__file__).parent / "golden"
STORED = json.loads((GOLDEN / "torch_clip_grad_norm.json").read_text())


def load_script():
    script = GOLDEN / STORED["script"]
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_provenance():
    assert STORED["torch"].startswith("2.13.0")
    assert len(STORED["cases"]) == load_script().CASES == 100


@pytest.mark.parametrize("norm_type", ["1.0", "2.0", "3.0", "inf"])
def test_torch_clip_grad_norm(norm_type):
    script = load_script()

    @jax.jit
    def update(grads, max_norm):
        clip = clipjax.torch_clip_grad_norm(max_norm, float(norm_type))
        updates, state = clip.update(grads, None)
        return updates, state.info.norm

    compared = 0
    for number, case in enumerate(STORED["cases"]):
        if str(case["norm_type"]) != norm_type:
            continue
        grads = [jnp.asarray(gradient) for gradient in script.gradients(number)]
        updates, length = update(grads, jnp.float32(case["max_norm"]))
        assert float(length) == pytest.approx(case["total_norm"], rel=1e-6)
        flat = np.concatenate([np.asarray(update).reshape(-1) for update in updates])
        np.testing.assert_allclose(flat, case["clipped"], rtol=1e-6)
        compared += 1
    assert compared == 25
