"""Makes clippy.json: the parameters after each step of Clippy Adagrad of Keras RS.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0 numpy keras==3.15.1 keras-rs==0.4.0
    KERAS_BACKEND=torch torch-venv/bin/python tests/golden/make_clippy.py FILE

FILE is `keras_rs/src/optimizers/clippy_adagrad.py` of the GitHub repository
keras-team/keras-rs at commit 6039fa0bc310a7b835bef51751b0eff87d3e6a7e, which that
package leaves out; the JSON keeps its SHA-256. The first parameters and the gradients
are not stored: `parameters` and `gradients` make them again.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import sys

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name("clippy.json")
STEPS = 10
SHAPES = ((3,), (2, 2))
# What multiplies which leaf at which step, counted from zero.
SPIKES = {(4, 0): 100.0, (6, 1): 100.0, (7, 1): 0.0, (8, 0): 0.01}
PAPER = {"variable_relative_threshold": 0.5, "absolute_threshold": 0.01}
CASES = (
    {"learning_rate": 0.1},
    {"learning_rate": 1.0, **PAPER},
    {"learning_rate": 1.0, **PAPER, "accumulator_relative_threshold": 0.1},
    {"learning_rate": 1.0, **PAPER, "clip_accumulator_update": True},
    {"learning_rate": 1.0, **PAPER, "use_standard_accumulator_update": True},
)
DEFAULTS = {
    "initial_accumulator_value": 0.1,
    "variable_relative_threshold": 0.1,
    "accumulator_relative_threshold": 0.0,
    "absolute_threshold": 1e-7,
    "epsilon": 1e-7,
    "clip_accumulator_update": False,
    "use_standard_accumulator_update": False,
}


def parameters():
    """Makes the parameters that every case starts from; one of them is zero."""
    generator = np.random.default_rng(0)
    leaves = [np.asarray(generator.standard_normal(s), np.float32) for s in SHAPES]
    leaves[1][0, 1] = 0.0
    return leaves


def gradients():
    """Makes the gradients of every step, with spikes, one of zero and one tiny."""
    generator = np.random.default_rng(1)
    return [
        [
            np.asarray(
                SPIKES.get((step, leaf), 1.0) * generator.normal(size=shape), np.float32
            )
            for leaf, shape in enumerate(SHAPES)
        ]
        for step in range(STEPS)
    ]


def rounded(arrays):
    """Gives the shortest decimals that are the same float32, of all the leaves."""
    flat = [value for array in arrays for value in np.asarray(array).reshape(-1)]
    return [float(str(np.float32(value))) for value in flat]


def run(optimizer_class, **settings):
    """Gives the flat parameters, and the leaves' factors, after each step."""
    import keras  # pyright: ignore[reportMissingImports]

    leaves = [keras.Variable(leaf) for leaf in parameters()]
    optimizer = optimizer_class(export_clipping_factors=True, **DEFAULTS | settings)
    answers = {"parameters": [], "factors": []}
    for step in gradients():
        optimizer.apply([keras.ops.convert_to_tensor(leaf) for leaf in step], leaves)
        answers["parameters"].append(rounded(leaf.numpy() for leaf in leaves))
        factors = [factor.numpy() for factor in optimizer.clipping_factors]
        answers["factors"].append(rounded(factors))
    return answers


def main():
    """Asks Keras RS."""
    source = pathlib.Path(sys.argv[1])
    spec = importlib.util.spec_from_file_location("reference", source)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    versions = ("torch", "numpy", "keras", "keras-rs")
    golden = {
        "script": pathlib.Path(__file__).name,
        "source": "keras_rs/src/optimizers/clippy_adagrad.py ClippyAdagrad",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        **{package: importlib.metadata.version(package) for package in versions},
        "python": platform.python_version(),
        "settings": DEFAULTS,
        "cases": [{**case, **run(reference.ClippyAdagrad, **case)} for case in CASES],
    }
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
