"""Makes stable_spam.json: what StableSPAM's own optimizer makes of gradients.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0 numpy
    torch-venv/bin/python tests/golden/make_stable_spam.py stablespam.py

The argument is the file `galore_torch/stablespam.py` of StableSPAM's repository, taken
from the copy in ffuhu/StableSPAM on GitHub at commit
ab1fe5bafe75112871879116ac470e010c5c10d7; the JSON keeps its SHA-256. It writes what
AdaClip leaves into the gradient, and with a first beta of zero Adam's first moment is
what AdaGN makes of that. The first parameters and the gradients are not stored:
`parameters` and `gradients` make them again. The moments are never reset.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import sys

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name("stable_spam.json")
STEPS = 25
SHAPES = ((3,), (2, 2))
# What multiplies which leaf at which step, counted from zero.
SPIKES = {(5, 0): 10.0, (12, 1): 100.0, (13, 1): 0.01, (18, 0): 0.0, (20, 0): 3.0}
CASES = (
    {"betas": (0.0, 0.999)},
    {"betas": (0.0, 0.999), "gamma1": 0.85, "gamma2": 0.99999, "gamma3": 0.9},
    {"betas": (0.9, 0.999)},
)
SETTINGS = {"lr": 0.01, "eps": 1e-8}


def parameters():
    """Makes the parameters that every case starts from."""
    generator = np.random.default_rng(0)
    return [np.asarray(generator.standard_normal(s), np.float32) for s in SHAPES]


def gradients():
    """Makes the gradients of every step: some large, one tiny, one zero."""
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


def rounded(tensors):
    """Gives the shortest decimals that are the same float32, of all the leaves."""
    flat = [value for tensor in tensors for value in tensor.flatten().tolist()]
    return [float(str(np.float32(value))) for value in flat]


def run(optimizer_class, **settings):
    """Gives, after each step: clipped, normalized when it can be seen, parameters."""
    import torch  # pyright: ignore[reportMissingImports]

    leaves = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in parameters()]
    optimizer = optimizer_class(leaves, update_proj_gap=0, **SETTINGS, **settings)
    answers = {"clipped": [], "normalized": [], "parameters": []}
    for step in gradients():
        for leaf, gradient in zip(leaves, step, strict=True):
            leaf.grad = torch.tensor(gradient)
        optimizer.step()
        moments = [optimizer.state[leaf]["exp_avg"] for leaf in leaves]
        answers["clipped"].append(rounded(leaf.grad for leaf in leaves))
        answers["normalized"].append(rounded(moments))
        answers["parameters"].append(rounded(leaf.detach() for leaf in leaves))
    if settings["betas"][0] != 0.0:
        del answers["normalized"]
    return answers


def main():
    """Asks StableSPAM."""
    source = pathlib.Path(sys.argv[1])
    spec = importlib.util.spec_from_file_location("reference", source)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    golden = {
        "script": pathlib.Path(__file__).name,
        "source": "galore_torch/stablespam.py StableSPAM",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "torch": importlib.metadata.version("torch"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "settings": {**SETTINGS, "gamma1": 0.7, "gamma2": 0.9, "gamma3": 0.999},
        "cases": [{**case, **run(reference.StableSPAM, **case)} for case in CASES],
    }
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
