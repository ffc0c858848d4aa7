"""`clipjax.jax_internals`: what clipjax uses of JAX's internals, name by name."""

import ast
import importlib
import inspect
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import clipjax
from clipjax import jax_internals as internals
from clipjax.jax_internals import jaxprs, versions

PACKAGE = pathlib.Path(clipjax.__file__).parent
ROOM = PACKAGE / "jax_internals"
RANGE = f"clipjax supports JAX {versions.OLDEST} to {versions.NEWEST}, and this is JAX "
ROWS = PartitionSpec("data", None)
MATRIX = np.arange(48, dtype=np.float32).reshape(8, 6)


def mesh(kind):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


@pytest.fixture
def on_explicit_mesh():
    with jax.set_mesh(mesh(AxisType.Explicit)):
        yield jax.device_put(MATRIX, ROWS)


def in_shard_map(function):
    """Return what a function finds for a shard of the matrix, and for a shared row."""
    found = []

    def run(shard, row):
        found.append((function(shard), function(row)))
        return shard

    specs = (ROWS, PartitionSpec())
    sharded = jax.shard_map(
        run, mesh=mesh(AxisType.Auto), in_specs=specs, out_specs=ROWS
    )
    jax.eval_shape(sharded, MATRIX, MATRIX[0])
    return found[0]


def test_tracer():
    found = []
    jax.eval_shape(lambda x: found.append(isinstance(x, internals.Tracer)), MATRIX)
    assert found == [True] and not isinstance(jnp.ones(2), internals.Tracer)


def test_is_weakly_typed():
    assert internals.is_weakly_typed(jnp.asarray(1.0))
    assert not internals.is_weakly_typed(jnp.float32(1.0))


def test_identity():
    found = []

    def loss(bias, shift, row):
        return jnp.sum(jnp.sin(row + bias + shift))

    def one(row):
        gradients = jax.grad(loss, (0, 1))(MATRIX[0], MATRIX[1], row)
        found.extend(map(internals.identity, (*gradients, jnp.sin(gradients[0]))))
        return gradients

    jax.eval_shape(jax.vmap(one), MATRIX)
    jax.eval_shape(jax.vmap(jax.vmap(one)), np.stack([MATRIX] * 3))
    for first, second, other in (found[:3], found[3:]):
        assert first == second != other


def test_varying_axes():
    assert in_shard_map(internals.varying_axes) == ({"data"}, set())
    assert internals.varying_axes(MATRIX) == set()


def test_manual_axes():
    assert in_shard_map(lambda _: internals.manual_axes())[0] == ("data",)
    assert internals.manual_axes() == ()


def test_mesh_is_explicit_and_mesh_size(on_explicit_mesh):
    assert internals.mesh_is_explicit() and internals.mesh_size() == 8
    with jax.set_mesh(mesh(AxisType.Auto)):
        assert not internals.mesh_is_explicit() and internals.mesh_size() == 8


def test_mesh_is_explicit_and_mesh_size_without_one():
    assert not internals.mesh_is_explicit() and internals.mesh_size() <= 1
    assert in_shard_map(lambda _: internals.mesh_is_explicit()) == (False, False)


def test_spec_of_and_resharded(on_explicit_mesh):
    assert internals.spec_of(on_explicit_mesh) == ROWS
    assert internals.resharded(on_explicit_mesh, ROWS) is on_explicit_mesh
    whole = internals.resharded(on_explicit_mesh, (None, None))
    assert internals.spec_of(whole) == PartitionSpec(None, None)
    np.testing.assert_array_equal(whole, MATRIX)


def test_explicit_sharding(on_explicit_mesh):
    assert internals.explicit_sharding(on_explicit_mesh).spec == ROWS
    with jax.set_mesh(mesh(AxisType.Auto)):
        assert internals.explicit_sharding(jnp.asarray(MATRIX)) is None


def test_auto_axes(on_explicit_mesh):
    found = []

    def function(matrix):
        found.append(internals.mesh_is_explicit())
        return matrix.T @ matrix  # an error in Explicit mode: how to split it is open

    product = internals.auto_axes(function, out_sharding=PartitionSpec())
    np.testing.assert_allclose(product(on_explicit_mesh), MATRIX.T @ MATRIX)
    assert found == [False]


def test_checkify():
    def function(x):
        internals.checkify.check(x > 0, "it is negative")
        return x

    error, _ = internals.checkify.checkify(function)(-1.0)
    assert "it is negative" in error.get()


def test_device_memory():
    assert internals.device_memory() is None  # of a CPU


def program_of(function, *arguments):
    return internals.trace(function, *arguments)[0]


def test_trace_program_and_the_parts_of_an_equation():
    bias = jnp.arange(6.0)
    program, constants, structure = internals.trace(
        lambda x: {"y": jnp.tanh(x @ bias) * 2.0}, MATRIX
    )
    assert structure == jax.tree.structure({"y": 0})
    assert [equation.name for equation in program.equations][-2:] == ["tanh", "mul"]
    np.testing.assert_array_equal(constants[0], bias)
    assert len(program.constants) == len(constants) == len(program.inputs) == 1
    (result,) = program.outputs
    last = program.equations[-1]
    assert last.outputs == (result,)
    kinds = sorted(map(internals.is_literal, last.inputs))
    assert kinds == [False, True] == sorted(map(internals.is_variable, last.inputs))
    assert internals.shape_of(result) == (8,)
    assert internals.dtype_of(result) == jnp.float32
    assert internals.read_all(last.inputs, dict.fromkeys(last.inputs[:1], 7)) == [7, 2]


@pytest.mark.parametrize("traced", [False, True])
def test_equation_run(traced):
    (equation,) = program_of(
        lambda x: jax.lax.split(x, (2, 6)), MATRIX[0, 0] + np.ones(8)
    ).equations
    run = lambda x: equation.run([x])  # noqa: E731
    first, second = (jax.jit(run) if traced else run)(jnp.arange(8.0))
    np.testing.assert_array_equal(first, [0, 1])
    np.testing.assert_array_equal(second, np.arange(2, 8))


def test_equation_run_with_an_input_twice_and_a_literal():
    squared, shifted = program_of(lambda x: x * x + 1.0, np.float32(0)).equations
    assert squared.run([jnp.float32(3)] * 2) == [9]
    assert shifted.run([jnp.float32(9), 1.0]) == [10]


@pytest.mark.parametrize("wrapper", [jax.jit, jax.checkpoint])
def test_equation_inner(wrapper):
    (equation,) = program_of(wrapper(jnp.sin), MATRIX).equations
    program, constants = equation.inner()
    assert [inner.name for inner in program.equations] == ["sin"]
    assert len(constants) == len(program.constants) == 0
    assert equation.name == (jaxprs.JIT if wrapper is jax.jit else jaxprs.CHECKPOINT)


def test_equation_scan_counts():
    def function(carry, xs):
        step = lambda c, x: ((c[0] + x, c[1] * MATRIX[0, 1]), c[0] @ xs[0])  # noqa: E731
        return jax.lax.scan(step, (carry, 1.0), xs, reverse=True, unroll=2)

    (equation,) = program_of(function, MATRIX[0], MATRIX).equations[-1:]
    assert equation.name == jaxprs.SCAN
    constants, carried = equation.scan_counts()
    assert carried == 2 and len(equation.inputs) == constants + carried + 1
    read = [equation.setting(name) for name in ("length", "reverse", "unroll")]
    assert read == [8, True, 2]


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME")


IMAGE = np.ones((2, 3, 8, 8), np.float32)
ROW = jnp.array([1, 2])
# By name of an operation: a function with it, and the settings that clipjax reads.
OPERATIONS = {
    "JIT": (jax.jit(jnp.sin), "jaxpr"),
    "CHECKPOINT": (jax.checkpoint(jnp.sin), "jaxpr", "prevent_cse", "policy"),
    "SCAN": (lambda x: jax.lax.scan(lambda c, y: (c, y), 0.0, x), "jaxpr", "length"),
    "CAST": (lambda x: x.astype(jnp.bfloat16),),
    "STOP_GRADIENT": (jax.lax.stop_gradient,),
    "ADD": (lambda x: x + x,),
    "CONCATENATE": (lambda x: jnp.concatenate([x, x]), "dimension"),
    "STACK": (lambda x: jnp.stack([x, x]), "axis"),
    "TRANSPOSE": (jnp.transpose, "permutation"),
    "COPY": (jnp.copy,),
    "BROADCAST": (lambda x: x[None],),
    "DOT": (lambda x: x @ x.T, "dimension_numbers"),
    "CONVOLUTION": (
        lambda x: convolve(IMAGE, jnp.ones((4, 3, 3, 3))),
        *("dimension_numbers", "feature_group_count", "batch_group_count"),
        *("window_strides", "padding", "lhs_dilation", "rhs_dilation"),
    ),
    "GATHER": (lambda x: x[ROW], "dimension_numbers", "slice_sizes", "mode"),
    "DYNAMIC_SLICE": (
        lambda x: jax.lax.dynamic_slice(x, (x.argmax(), 0), (1, 6)),
        "slice_sizes",
    ),
}
REARRANGING = {
    "reshape": lambda x: x.reshape(-1),
    "squeeze": lambda x: jax.lax.squeeze(x[:1], (0,)),
    "slice": lambda x: x[1:3],
    "split": lambda x: jnp.split(x, 2),
    "unstack": jnp.unstack,
    "rev": lambda x: x[::-1],
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_name_and_settings_of_an_operation(operation):
    function, *settings = OPERATIONS[operation]
    name = getattr(jaxprs, operation)
    found = [e for e in program_of(function, MATRIX).equations if e.name == name]
    assert found, f"no equation is called {name}"
    for setting in settings:
        found[0].setting(setting)


def test_names_of_operations_that_rearrange():
    assert not set(REARRANGING) - set(jaxprs.REARRANGING)
    for name, function in REARRANGING.items():
        names = [equation.name for equation in program_of(function, MATRIX).equations]
        assert name in names, name


def test_every_name_has_a_test():
    text = pathlib.Path(__file__).read_text(encoding="utf-8")
    public = {name for name, _ in inspect.getmembers(internals) if name[0] != "_"}
    for name in public - {"arrays", "jaxprs", "versions", "unsupported"}:
        in_title = rf"\btest_\w*{name.lower()}(?![a-z])"
        assert re.search(rf"internals\.{name}\b|{in_title}", text), name
    operations = {name for name in vars(jaxprs) if name.isupper()} - {"REARRANGING"}
    assert operations == set(OPERATIONS)
    constants = {getattr(jaxprs, name) for name in operations}
    assert set(jaxprs.REARRANGING) <= constants | set(REARRANGING)


def imports_of_jax():
    """Return each name that the room imports from JAX, as module and name."""
    return sorted(
        {
            (node.module, alias.name)
            for path in ROOM.glob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and not node.level
            if str(node.module).partition(".")[0] == "jax"
            for alias in node.names
        }
    )


@pytest.mark.parametrize(("module", "name"), imports_of_jax())
def test_a_missing_name_is_explained(module, name, monkeypatch):
    monkeypatch.delattr(importlib.import_module(module), name)
    if f"{module}.{name}" in sys.modules:  # a module, which Python would find again
        monkeypatch.setitem(sys.modules, f"{module}.{name}", None)
    for loaded in [m for m in sys.modules if m.startswith("clipjax.jax_internals")]:
        monkeypatch.delitem(sys.modules, loaded)
    with pytest.raises(ImportError, match=re.escape(RANGE + jax.__version__)) as caught:
        importlib.import_module("clipjax.jax_internals")
    assert name in str(caught.value)
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_missing_attribute_or_setting_is_explained(monkeypatch):
    (equation,) = program_of(jnp.sin, MATRIX).equations
    with pytest.raises(ImportError, match=f"{re.escape(RANGE)}.*'absent'") as caught:
        equation.setting("absent")
    assert isinstance(caught.value.__cause__, KeyError)
    monkeypatch.setattr(internals.arrays, "typeof", lambda array: object())
    with pytest.raises(ImportError, match=f"{re.escape(RANGE)}.*manual_axis_type"):
        internals.varying_axes(MATRIX)


# Modules that JAX does not promise to keep, and attributes that only the room reads.
UNSTABLE = r"jax\.(core|extend|experimental|interpreters|lib)\b|\w+(\.\w+)*\._\w+"
ATTRIBUTES = {
    *("typeof", "reshard", "auto_axes", "AxisType", "get_abstract_mesh", "aval"),
    *("manual_axes", "manual_axis_type", "vma", "weak_type", "explicit_axes"),
    *("eqns", "invars", "outvars", "constvars", "primitive", "jaxpr", "debug_info"),
    *("memory_stats", "make_jaxpr"),
}


def internals_in(source):
    """Return the lines of a source that read JAX's, Optax's or Flax's internals."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
            if node.attr in ATTRIBUTES:
                found.append(f"{node.lineno}: .{node.attr}")
        found += [
            f"{node.lineno}: {name}"
            for name in names
            if re.match(r"(jax|optax|flax|nnx)\b", name) and re.match(UNSTABLE, name)
        ]
    return found


def test_no_other_file_of_clipjax_uses_internals():
    for path in PACKAGE.rglob("*.py"):
        if ROOM not in path.parents:
            assert not internals_in(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    "line",
    [
        "import jax._src.core",
        "from jax._src import core",
        "from jax import core",
        "from jax.core import Tracer",
        "import jax.extend",
        "x = jax.interpreters.ad",
        "from optax._src import base",
        "kind = jax.typeof(x)",
        "names = [e.primitive for e in jaxpr.eqns]",
    ],
)
def test_such_uses_are_found(line):
    assert internals_in(line)
