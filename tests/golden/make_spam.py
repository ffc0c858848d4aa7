"""Makes spam.json: the clipped gradients and parameters of SPAM's own optimizer.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0 numpy
    torch-venv/bin/python tests/golden/make_spam.py SPAM.py

The argument is the file `galore_torch/SPAM.py` of SPAM's repository, taken from the
copy in ffuhu/SPAM-Optimizer on GitHub at commit
67a96a03e64e947759542ee4ec5fdf2269dfa71b; the JSON keeps its SHA-256. The first
parameters and the gradients are not stored: `parameters` and `gradients` make them
again.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import sys

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name("spam.json")
STEPS = 30
SHAPE = (2, 3)
# What multiplies which element at which step, counted from zero.
SPIKES = {(8, 0, 1): 100.0, (22, 0, 0): 100.0, (22, 1, 2): 1000.0, (27, 1, 1): 100.0}
CASES = (
    {"threshold": 5000, "grad_accu_steps": 20, "betas": (0.9, 0.999)},
    {"threshold": 2, "grad_accu_steps": 20, "betas": (0.9, 0.9)},
    {"threshold": 4, "grad_accu_steps": 5, "betas": (0.9, 0.95)},
    # Resets the moments at every twelfth step, then warms the learning rate up.
    {
        "threshold": 4,
        "grad_accu_steps": 5,
        "betas": (0.9, 0.95),
        "update_proj_gap": 12,
        "warmup_epoch": 4,
    },
)
NOTE = (
    "Steps count from 1 here. Clipping acts at step t when t >= grad_accu_steps and t "
    "mod update_proj_gap >= grad_accu_steps; without an update_proj_gap there is no "
    "reset. Where it acts, g*g > threshold*v gives sign(g)*sqrt(threshold*v), v the "
    "second moment of the steps before, without bias correction. The update is "
    "lr*sqrt(1 - b2**t)/(1 - b1**t) * m/(sqrt(v) + eps). Where there are resets, the "
    "gradients that SPAM clipped cannot be seen."
)
SETTINGS = {"lr": 0.01, "eps": 1e-6}


def parameters():
    """Makes the parameter that every case starts from."""
    return np.asarray(np.random.default_rng(0).standard_normal(SHAPE), np.float32)


def gradients():
    """Makes the gradients of every step, with spikes in some of their elements."""
    steps = np.random.default_rng(1).standard_normal((STEPS, *SHAPE))
    for place, factor in SPIKES.items():
        steps[place] *= factor
    return np.asarray(steps, np.float32)


def rounded(tensor):
    """Gives the shortest decimals that are the same float32."""
    return [float(str(np.float32(value))) for value in tensor.flatten().tolist()]


def run(optimizer_class, update_proj_gap=None, **settings):
    """Gives the flat clipped gradient and the flat parameter after each step."""
    import torch  # pyright: ignore[reportMissingImports]

    leaf = torch.nn.Parameter(torch.tensor(parameters()))
    group = {"params": [leaf]}
    if update_proj_gap is not None:
        group |= {"density": 1.0, "update_proj_gap": update_proj_gap}
    plain = {**SETTINGS, "no_deprecation_warning": True}
    optimizer = optimizer_class([group], **plain, **settings)
    answers = {"clipped": [], "parameters": []}
    for gradient in gradients():
        leaf.grad = torch.tensor(gradient)
        optimizer.step()
        answers["clipped"].append(rounded(leaf.grad))
        answers["parameters"].append(rounded(leaf.detach()))
    if update_proj_gap is not None:
        del answers["clipped"]
    return answers


def main():
    """Asks SPAM."""
    source = pathlib.Path(sys.argv[1])
    spec = importlib.util.spec_from_file_location("reference", source)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    golden = {
        "script": pathlib.Path(__file__).name,
        "source": "galore_torch/SPAM.py AdamW",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "note": NOTE,
        "torch": importlib.metadata.version("torch"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "settings": SETTINGS,
        "cases": [{**case, **run(reference.AdamW, **case)} for case in CASES],
    }
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
