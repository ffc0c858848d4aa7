"""jax_privacy's own tests of `clipped_grad`, run with clipjax in its place.

They come with the wheel of jax_privacy 2.0 and are read from there, not copied. Tests
of the wording of errors may fail for the wording alone.
"""

import importlib.metadata
import types
import unittest

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax

IMPORT = "from jax_privacy import clipping as gradient_clipping"
WORDING = {
    "test_validate_args_overlap",
    "test_validate_args_empty_batch",
    "test_validate_args_inconsistent_batch_size",
}


def their_tests():
    """Return the module of tests, or None where jax_privacy is not installed."""
    try:
        files = importlib.metadata.files("jax_privacy") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if str(file) == "tests/gradient_clipping_test.py":
            return file.read_text()
    return None


@pytest.mark.skipif(their_tests() is None, reason="needs jax_privacy and its tests")
def test_all_but_wording():
    source = their_tests()
    assert source is not None and IMPORT in source
    module = types.ModuleType("their_tests")
    changed = source.replace(IMPORT, "import clipjax as gradient_clipping")
    result = unittest.TestResult()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(changed, "gradient_clipping_test.py", "exec"), module.__dict__)
        case = module.__dict__["GradientClippingTest"]
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun >= 28
    assert not result.errors, result.errors[0][1]
    for test, text in result.failures:
        assert test.id().rpartition(".")[2] in WORDING, text
        assert "does not match" in text, text


@pytest.mark.parametrize("method", ["ghost", "vmap"])
def test_rescaled_to_unit_norm(method):
    grads = [
        clipjax.clipped_grad(
            lambda w, x: jnp.sum(x @ w),
            l2_clip_norm=limit,
            rescale_to_unit_norm=True,
            method=method,
        )
        for limit in (2.0, 0.0, 10.0)
    ]
    run = jax.jit(lambda *data: [grad(*data) for grad in grads])
    found = run(jnp.zeros(2), jnp.array([[3.0, 4.0]]))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 0.5], rtol=1e-5)
    for grad in grads:
        assert grad.l2_norm_bound == grad.sensitivity() == 1.0 and not grad.has_aux


def test_thresholds_by_group_or_example_have_unit_sensitivities():
    make = lambda limit: clipjax.clipped_grad(  # noqa: E731
        lambda w, x: jnp.sum(x @ w), l2_clip_norm=limit, rescale_to_unit_norm=True
    )
    assert make(lambda x: x[0]).sensitivity("REPLACE_ONE") == 2.0
    assert make({"a": 3.0, "b": 7.0, "c": 1.0, "d": 2.0}).l2_norm_bound == 2.0


def test_transform_to_another_structure():
    """Two entries of three, one of them doubled, in a tree of their own."""
    grad = clipjax.clipped_grad(
        lambda w, x: jnp.sum(x @ w),
        l2_clip_norm=2.5,
        pre_clipping_transform=lambda g: {"kept": g[:2] * jnp.array([1.0, 2.0])},
        return_grad_norms=True,
        spmd_axis_name="data",
    )
    found, info = jax.jit(grad)(jnp.zeros(3), jnp.array([[3.0, 2.0, 6.0]]))
    np.testing.assert_allclose(found["kept"], [1.5, 2.0], rtol=1e-5)
    np.testing.assert_allclose(info.grad_norms, [7.0], rtol=1e-6)
    assert grad.has_aux and "the method vmap" in grad.plan(
        jnp.zeros(3), jnp.ones((1, 3))
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pre_clipping_transform": 2.0}, TypeError),
        ({"pre_clipping_transform": abs, "method": "ghost"}, ValueError),
    ],
)
def test_refused_transforms(options, error):
    with pytest.raises(error, match="pre_clipping_transform"):
        clipjax.clipped_grad(jnp.dot, l2_clip_norm=1.0, **options)


def test_narrow_results_have_no_sensitivity():
    grad = clipjax.clipped_grad(jnp.dot, l2_clip_norm=1.0, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="dtype=bfloat16 has no sensitivity"):
        grad.sensitivity()


@pytest.mark.parametrize("method", ["ghost", "vmap"])
def test_modules_that_hold_functions(method):
    """The result has None there, like the gradients of `equinox.filter_grad`."""
    with jax.default_prng_impl("unsafe_rbg"):  # compiled the fastest
        model = equinox.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))

    def loss(model, x):
        return jnp.sum(model(x) ** 2)

    def sum_of_losses(model, inputs):
        return jnp.sum(jax.vmap(lambda x: loss(model, x))(inputs))

    grad = clipjax.clipped_grad(
        loss, l2_clip_norm=np.inf, keep_batch_dim=False, method=method
    )
    inputs = np.sin(np.arange(12, dtype=np.float32)).reshape(3, 4)
    found = equinox.filter_jit(grad)(model, inputs)
    expected = equinox.filter_jit(equinox.filter_grad(sum_of_losses))(model, inputs)
    assert found.activation is None
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    equinox.apply_updates(model, found)
