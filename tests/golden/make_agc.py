"""Makes agc.json: what timm's adaptive_clip_grad makes of gradients of rank 0 to 4.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0 numpy
    torch-venv/bin/pip install --no-deps timm==1.0.31
    torch-venv/bin/python tests/golden/make_agc.py

The parameters and gradients are not stored: `tensors` makes them again. Their layout is
PyTorch's, the output unit first. The file of timm is loaded alone, since the whole of
timm needs torchvision.
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import platform

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name("agc.json")
SHAPES = ((), (4,), (4, 3), (4, 3, 2), (4, 3, 2, 2))
CLIP_FACTORS = (0.01, 0.1)
EPS = (1e-3, 0.1)
CASES = 12


def tensors(case):
    """Makes a case's parameters and gradients, with a unit of zeros in each of them."""
    generator = np.random.default_rng(case)
    parameters, gradients = [], []
    for shape in SHAPES:
        parameter = generator.standard_normal(shape)
        gradient = 10.0 ** generator.uniform(-4, 1) * generator.standard_normal(shape)
        if len(shape) > 1:
            parameter[0] = 0.0
            gradient[1] = 0.0
        parameters.append(np.asarray(parameter, np.float32))
        gradients.append(np.asarray(gradient, np.float32))
    return parameters, gradients


def main():
    """Asks timm."""
    import torch  # pyright: ignore[reportMissingImports]

    package = pathlib.Path(importlib.util.find_spec("timm").origin).parent
    spec = importlib.util.spec_from_file_location("agc", package / "utils" / "agc.py")
    agc = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(agc)
    cases = []
    for case in range(CASES):
        leaves = []
        for parameter, gradient in zip(*tensors(case), strict=True):
            leaf = torch.nn.Parameter(torch.tensor(parameter))
            leaf.grad = torch.tensor(gradient)
            leaves.append(leaf)
        settings = {"clip_factor": CLIP_FACTORS[case % 2], "eps": EPS[case // 2 % 2]}
        agc.adaptive_clip_grad(leaves, **settings)
        flat = [value for leaf in leaves for value in leaf.grad.flatten().tolist()]
        clipped = [float(str(np.float32(value))) for value in flat]
        cases.append({**settings, "clipped": clipped})
    golden = {
        "script": pathlib.Path(__file__).name,
        "source": "timm.utils.agc.adaptive_clip_grad",
        "timm": importlib.metadata.version("timm"),
        "torch": importlib.metadata.version("torch"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cases": cases,
    }
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
