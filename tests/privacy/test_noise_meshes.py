"""The noise on eight devices: one for all replicas, another for each shard."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import assert_close, assert_same_bits, eps
from placements import assert_devices_agree

import clipjax
from clipjax import privacy

KEY = jax.random.key(0)
NOISE = privacy.gaussian_noise(1.0, 2.0, KEY)
SHAPES = {"both": (16, 6), "pair": (32, 3), "replicated": (4,), "rows": (8, 3)}
SPECS = {
    "both": PartitionSpec("data", "model"),
    "pair": PartitionSpec(("data", "model")),
    "replicated": PartitionSpec(),
    "rows": PartitionSpec("data"),
}
SUMS = {
    name: np.random.default_rng(0).normal(size=shape).astype("f4")
    for name, shape in SHAPES.items()
}
ZEROS = jax.tree.map(np.zeros_like, SUMS)
COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|collective|reduce-scatter")


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("data", "model"), (kind,) * 2)


@pytest.mark.parametrize(
    ("kind", "impl"),
    [
        (AxisType.Auto, "threefry2x32"),
        (AxisType.Explicit, "threefry2x32"),
        (AxisType.Auto, "rbg"),
    ],
)
def test_jit_gives_the_noise_of_one_device(kind, impl):
    rule = privacy.gaussian_noise(1.0, 2.0, jax.random.key(0, impl=impl))
    state = rule.init(None)
    expected, _ = jax.jit(rule.update)(SUMS, state)
    grid = mesh(kind)
    shardings = {name: NamedSharding(grid, spec) for name, spec in SPECS.items()}
    with jax.set_mesh(grid):
        sums = jax.device_put(SUMS, shardings)
        # An Explicit mesh tells a result's sharding by its type.
        where = {"out_shardings": (shardings, None)} if kind == AxisType.Auto else {}
        program = jax.jit(rule.update, **where).lower(sums, state).compile()
        updates, _ = program(sums, state)
    assert_close(updates, expected, rtol=4 * eps("f4"), atol=eps("f4"))
    assert_devices_agree(updates)
    for name, leaf in updates.items():
        assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim)
    text = program.as_text()
    assert not COLLECTIVE.search(text)
    if impl == "threefry2x32":
        # No device makes more than its own part: the program has no array as large.
        sizes = [
            math.prod(map(int, found.split(",")))
            for found in re.findall(r"[fu]32\[([\d,]+)\]", text)
        ]
        assert max(sizes) <= 2 * max(leaf.size for leaf in SUMS.values()) / 8


def on_shards(rule, *, check_vma=True, given=True, specs=SPECS, own=SPECS):
    """Takes a step in shard_map; own splits the parameters."""
    state = rule.init(None)
    step = jax.shard_map(
        lambda sums, params: rule.update(sums, state, params if given else None)[0],
        mesh=mesh(),
        in_specs=(specs, own),
        out_specs=specs,
        check_vma=check_vma,
    )
    return jax.jit(step)(ZEROS, ZEROS)


NAMED = privacy.gaussian_noise(1.0, 2.0, KEY, axis_name=("data", "model"))


@pytest.mark.parametrize(
    ("rule", "settings"),
    [(NOISE, {}), (NAMED, {"given": False})],
    ids=["parameters", "axis_name"],
)
def test_shards_differ_and_replicas_do_not(rule, settings):
    updates = on_shards(rule, **settings)
    assert_devices_agree(updates)
    alone, _ = jax.jit(NOISE.update)(ZEROS, NOISE.init(None))
    assert_same_bits(updates["replicated"], alone["replicated"])
    # No number comes twice, in all leaves together.
    drawn = np.concatenate([np.ravel(leaf) for leaf in updates.values()])
    assert len(np.unique(drawn)) == drawn.size
    off = abs(np.mean(drawn**2) / 4 - 1)
    assert off < 5 * math.sqrt(2 / drawn.size)


def test_shards_are_not_correlated():
    rule, step = NOISE, PartitionSpec("data", "model")
    state = rule.init(None)
    where = {"in_specs": step, "out_specs": step}
    run = jax.shard_map(
        lambda sums: rule.update(sums, state, sums)[0], mesh=mesh(), **where
    )
    updates = np.asarray(jax.jit(run)(np.zeros((400, 100), "f4")), "f8")
    shards = [half for row in np.split(updates, 4) for half in np.split(row, 2, 1)]
    shards = np.stack([shard.reshape(-1) for shard in shards])
    correlations = np.corrcoef(shards) - np.eye(8)
    # 28 pairs, within 5.5 standard deviations of an estimate from 5,000.
    assert np.abs(correlations).max() < 5.5 / math.sqrt(5000)


def test_unchecked_types():
    with pytest.raises(ValueError, match="so that a draw of noise could be that of on"):
        on_shards(NOISE, check_vma=False)
    # All leaves are taken to be split.
    split = SPECS | {"replicated": SPECS["rows"], "rows": SPECS["pair"]}
    shapes = {"specs": split, "own": split, "check_vma": False}
    updates = on_shards(NAMED, **shapes)
    drawn = np.concatenate([np.ravel(leaf) for leaf in updates.values()])
    assert len(np.unique(drawn)) == drawn.size
    # None are: every device has the whole sum.
    whole = dict.fromkeys(SPECS, PartitionSpec())
    shapes = {"specs": whole, "own": whole, "check_vma": False}
    rule = privacy.gaussian_noise(1.0, 2.0, KEY, axis_name=())
    updates = on_shards(rule, **shapes)
    assert_devices_agree(updates)
    assert_close(updates, jax.jit(NOISE.update)(ZEROS, NOISE.init(None))[0])


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        (NOISE, {"given": False}, "its draw of noise would.*if they are split alike\n"),
        (
            NOISE,
            {"own": dict.fromkeys(SPECS, PartitionSpec())},
            "and its parameter does not: .*one worker's gradient.*jax.lax.psum.grads",
        ),
        (
            privacy.gaussian_noise(1.0, 2.0, KEY, axis_name="model"),
            {},
            "not in axis_name='model': .*jax.lax.psum.grads",
        ),
        (
            privacy.gaussian_noise(1.0, 2.0, KEY, axis_name=()),
            {},
            r"both differs over .*axis_name=\(\) would give each shard the same noise",
        ),
        (
            clipjax.per_worker(NOISE, "data"),
            {},
            "inside clipjax.per_worker would add the same noise",
        ),
    ],
    ids=["no parameters", "a worker's", "another axis", "no axis", "per_worker"],
)
def test_what_would_get_the_wrong_noise_is_refused(rule, settings, message):
    with pytest.raises(ValueError, match=message):
        on_shards(rule, **settings)


def test_an_axis_that_is_not_there():
    rule = privacy.gaussian_noise(1.0, 2.0, KEY, axis_name="data")
    with pytest.raises(ValueError, match="there is no such axis here"):
        rule.update(SUMS, rule.init(None))


@pytest.mark.filterwarnings("ignore:.*pmap:DeprecationWarning")
def test_pmap():
    sums, state = np.zeros((8, 16), "f4"), NOISE.init(None)

    def run(rule):
        return jax.pmap(lambda sums: rule.update(sums, state)[0], axis_name="i")(sums)

    shards = np.asarray(run(privacy.gaussian_noise(1.0, 2.0, KEY, axis_name="i")))
    assert len(np.unique(shards)) == shards.size
    copies = np.asarray(run(privacy.gaussian_noise(1.0, 2.0, KEY, axis_name=())))
    assert_close(copies, np.stack([copies[0]] * 8), rtol=0)
    assert_close(copies[0], NOISE.update(sums[0], state)[0], rtol=4 * eps("f4"))
    with pytest.raises(ValueError, match="types do not say"):
        run(NOISE)


def test_workers_in_vmap():
    rule = privacy.gaussian_noise(1.0, 2.0, KEY, axis_name="i")
    state = rule.init(None)
    step = jax.vmap(lambda sums: rule.update(sums, state)[0], axis_name="i")
    updates = step(jnp.zeros((8, 3)))
    assert len(np.unique(updates)) == 24
    with pytest.raises(ValueError, match="inside clipjax.per_worker"):
        workers = clipjax.per_worker(NOISE, "i")
        jax.vmap(lambda sums: workers.update(sums, state), axis_name="i")(
            jnp.zeros((8, 3))
        )


def test_leaves_on_different_devices_are_sent_to_jit():
    one, two = jax.devices()[3], jax.devices()[5]
    sums = {
        "a": jax.device_put(jnp.ones(2), one),
        "b": jax.device_put(jnp.ones(2), two),
    }
    with pytest.raises(ValueError, match="'a' on .*3.* and 'b' on .*5.*under jit"):
        NOISE.update(sums, NOISE.init(None))
    alone = {"a": sums["a"]}
    updates, _ = NOISE.update(alone, NOISE.init(None))
    assert updates["a"].devices() == {one}
