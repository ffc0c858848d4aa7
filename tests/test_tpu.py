"""What XLA makes of every clip for TPUs: it takes libtpu, and no TPU."""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from placements import SPECTRAL, all_reduces

import clipjax
from clipjax.guards import drop

pytest.importorskip("libtpu")
SIZE = 4096  # what XLA keeps in scratch memory is small beside a leaf
LEAVES = 3
# A decomposition needs room for its factors.
ALONE = {name: make for name, make in catalogue.RECIPES.items() if name not in SPECTRAL}
# What comes before Adam is not written down for it, nor for the clip's own report.
IN_STEPS = {
    "clip_by_value + adam": lambda: before_adam(clipjax.clip_by_value(1.0)),
    "clip_by_global_norm + adam": lambda: before_adam(clipjax.clip_by_global_norm(1.0)),
    "adaptive_grad_clip + adam": lambda: before_adam(clipjax.adaptive_grad_clip(0.01)),
    "quantization_clip + adam": lambda: before_adam(clipjax.quantization_clip()),
    "a guard + adam": lambda: before_adam(clipjax.clip_by(1.0, nonfinite=drop)),
    "spam_clip": clipjax.spam_clip,
    "stable_update_clip": clipjax.stable_update_clip,
}
# As in test_placements; units of one leaf need no second one here.
MORE = {"stable_spam_clip": 2, "quantization_clip": 2}


@pytest.fixture(scope="module")
def four_tpus():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # nobody to ask what machine this is
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name="v5e:2x2x1"
        )
    return np.array(topology.devices)


def before_adam(clip):
    return optax.chain(clip, optax.adam(1e-3))


def compiled(clip, dtype, devices):
    """Compiles a clip that is given its gradient and its state for good."""
    mesh = Mesh(devices, ("x",))

    def placed(leaf):
        spec = PartitionSpec(*("x" for size in leaf.shape[:1] if size == SIZE))
        where = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    leaf = jax.ShapeDtypeStruct((SIZE, SIZE), dtype)
    grads = {f"layer{i}": leaf for i in range(LEAVES)}
    state = jax.eval_shape(clip.init, grads)
    arguments = jax.tree.map(placed, (grads, state, grads))
    with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
        results = jax.eval_shape(clip.update, *arguments)
        where = jax.tree.map(lambda leaf: placed(leaf).sharding, results)
        step = jax.jit(clip.update, donate_argnums=(0, 1), out_shardings=where)
        return step.lower(*arguments).compile()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ALONE | IN_STEPS)
def test_no_temporary_memory(name, dtype, four_tpus):
    clip = (ALONE | IN_STEPS)[name]()
    held = compiled(clip, dtype, four_tpus[:1]).memory_analysis()
    leaf = SIZE**2 * jnp.dtype(dtype).itemsize
    assert held.temp_size_in_bytes < leaf / 8


@pytest.mark.parametrize("name", ALONE | catalogue.COMPOUNDS)
def test_one_all_reduce(name, four_tpus):
    clip = (ALONE | catalogue.COMPOUNDS)[name]()
    program = compiled(clip, jnp.float32, four_tpus)
    assert all_reduces(program) == MORE.get(name, 1)
    assert "all-gather" not in program.as_text()
