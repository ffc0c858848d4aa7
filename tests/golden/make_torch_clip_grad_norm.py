"""Makes torch_clip_grad_norm.json: what PyTorch's clip_grad_norm_ gives.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0 numpy
    torch-venv/bin/python tests/golden/make_torch_clip_grad_norm.py

The gradients are not stored: `gradients` makes them again from the case's number, and
the test calls it. Only the answers are PyTorch's.
"""

import json
import pathlib

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name("torch_clip_grad_norm.json")
NORM_TYPES = (1.0, 2.0, 3.0, float("inf"))
THRESHOLDS = (1e-7, 0.1, 1.0, 10.0)
CASES = 100


def gradients(case):
    """Makes the gradients of one case: one to three leaves of rank zero to two."""
    generator = np.random.default_rng(case)
    shapes = [(), (3,), (2, 2)][: 1 + case % 3]
    size = 10.0 ** generator.uniform(-6, 4)
    return [
        np.asarray(size * generator.standard_normal(shape), np.float32)
        for shape in shapes
    ]


def main():
    """Asks PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]

    cases = []
    for case in range(CASES):
        norm_type = NORM_TYPES[case % 4]
        threshold = THRESHOLDS[case // 4 % 4]
        parameters = []
        for gradient in gradients(case):
            parameter = torch.nn.Parameter(torch.zeros(gradient.shape))
            parameter.grad = torch.tensor(gradient)
            parameters.append(parameter)
        total = torch.nn.utils.clip_grad_norm_(parameters, threshold, norm_type)
        flat = [value for p in parameters for value in p.grad.flatten().tolist()]
        cases.append(
            {
                "norm_type": "inf" if norm_type == float("inf") else norm_type,
                "max_norm": threshold,
                "total_norm": total.item(),
                "clipped": flat,
            }
        )
    golden = {
        "source": "torch.nn.utils.clip_grad_norm_",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "script": pathlib.Path(__file__).name,
        "cases": cases,
    }
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
