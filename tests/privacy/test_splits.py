"""A threshold that is shared out over layers: the shares, by hand, and who is refused.

That an example adds at most their total is for `test_sensitivity.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax import privacy

PARAMS = {
    "layer": {"kernel": np.ones((3, 4), "f4"), "bias": np.zeros((1, 4), "f4")},
    "last": np.ones((4, 5), "f4"),
    "steps": np.int32(3),
    "unused": None,
    "empty": np.zeros((0, 3), "f4"),
}
ONE_OF_EACH_KIND = {
    "function": lambda name, leaf: "bias" if name.endswith("bias") else "kernel",
    "prefix": {
        "layer": {"kernel": "kernel", "bias": "bias"},
        **dict.fromkeys(("last", "steps", "unused", "empty"), "kernel"),
    },
    "function of the tree": lambda tree: {
        "layer": {"kernel": "kernel", "bias": "bias"},
        **dict.fromkeys(("last", "steps", "unused", "empty"), "kernel"),
    },
}


def loss(params, x):
    hidden = x @ params["layer"]["kernel"] + params["layer"]["bias"]
    return jnp.sum(hidden @ params["last"])


def split(threshold=6.0, **options):
    return privacy.split_threshold(threshold, PARAMS, **options)


def test_shares():
    """Of 36 numbers, 4 are in the bias, 12 in the kernel and 20 in the last layer."""
    third = 6 / np.sqrt(3)
    expected = {"layer/bias": third, "layer/kernel": third, "last": third, "empty": 0}
    assert split().norms == pytest.approx(expected)
    expected = {"layer/bias": 2, "layer/kernel": np.sqrt(12), "last": np.sqrt(20)}
    assert split(by="dimension").norms == pytest.approx(expected | {"empty": 0})
    for groups in ONE_OF_EACH_KIND.values():
        half = 6 / np.sqrt(2)
        assert split(groups=groups).norms == pytest.approx(
            {"bias": half, "kernel": half}
        )
        assert split(groups=groups, by="dimension").norms == pytest.approx(
            {"bias": 2, "kernel": np.sqrt(32)}
        )
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
    assert privacy.split_threshold(6.0, shapes) == split()


@pytest.mark.parametrize("by", ["uniform", "dimension"])
@pytest.mark.parametrize("groups", [None, *ONE_OF_EACH_KIND])
def test_all_shares_together_are_the_threshold(by, groups):
    for threshold in (1e-7, 0.3, jnp.float32(0.3), 1e6):
        parts = split(threshold, by=by, groups=ONE_OF_EACH_KIND.get(groups))
        grad = clipjax.clipped_grad(loss, l2_clip_norm=parts, normalize_by=4.0)
        for relation, factor in {"ADD_OR_REMOVE_ONE": 1, "REPLACE_ONE": 2}.items():
            found = float(grad.sensitivity(relation))
            assert found == pytest.approx(factor * float(threshold) / 4, rel=1e-6)


def test_each_group_is_clipped_by_itself():
    """Under jit, with a threshold that is traced and a tree that is mapped over."""

    @jax.jit
    def run(threshold):
        parts = split(threshold, groups=ONE_OF_EACH_KIND["function"])
        halved = jax.tree.map(lambda norm: norm / 2, parts)
        return tuple(
            clipjax.clipped_grad(loss, l2_clip_norm=each)(PARAMS, jnp.ones((1, 3)))
            for each in (parts, halved)
        )

    for found, scale in zip(run(2.0), (1.0, 0.5), strict=True):
        groups = [[found["layer"]["bias"]], [found["layer"]["kernel"], found["last"]]]
        for leaves in groups:
            length = np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in leaves]))
            assert length == pytest.approx(scale * 2 / np.sqrt(2), rel=1e-3)


def test_arguments():
    for arguments, error, message in [
        ({"threshold": -1.0}, ValueError, "threshold must be a number of at least 0"),
        ({"threshold": np.inf}, ValueError, "threshold must be .*finite"),
        ({"threshold": None}, TypeError, "threshold must be a number"),
        ({"threshold": np.ones(2)}, ValueError, "one number, got shape"),
        ({"by": "size"}, ValueError, "by must be one of 'uniform', 'dimension'"),
        ({"groups": lambda name, leaf: 1}, TypeError, "labels must give a string"),
        ({"groups": {"layer": "a"}}, ValueError, "labels must be a prefix"),
    ]:
        with pytest.raises(error, match=message):
            split(**arguments)
    for params in ({"steps": np.int32(3), "unused": None}, {}, np.zeros((0, 2), "f4")):
        with pytest.raises(ValueError, match="params must have a floating-point leaf"):
            privacy.split_threshold(1.0, params)
    other = {"first": jnp.ones((3, 2))}
    grad = clipjax.clipped_grad(
        lambda params, x: jnp.sum(x @ params["first"]), l2_clip_norm=split()
    )
    with pytest.raises(ValueError, match="'first', which has no threshold"):
        jax.eval_shape(grad, other, jnp.ones((1, 3)))
