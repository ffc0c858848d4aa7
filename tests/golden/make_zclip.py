"""Makes zclip.json: what the ZClip authors' package does to a sequence of gradients.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0 numpy
    torch-venv/bin/pip install --no-deps zclip==1.0.0
    torch-venv/bin/python tests/golden/make_zclip.py

The gradients are not stored: `gradients` makes them again from the number of the
sequence. Stored are the norms that ZClip measured, and for each case the norm that it
left at each step and the mean and variance that it ended with.
"""

import importlib.metadata
import itertools
import json
import pathlib
import platform

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name("zclip.json")
STEPS = 80
SHAPES = ((3,), (2, 2))
# What is multiplied at which step, counted from zero; the warm-up takes steps 0 to 24.
SPIKES = (
    {40: 10.0, 55: 100.0, 56: 3.0, 62: 0.1, 70: 10.0},
    {10: 10.0, 40: 10.0, 55: 100.0, 70: 10.0},
)
SETTINGS = {"alpha": 0.97, "z_thresh": 2.5, "warmup_steps": 25, "eps": 1e-6}


def gradients(sequence):
    """Makes one sequence: log-normal norms with spikes, in random directions."""
    generator = np.random.default_rng(sequence)
    norms = 0.8 * np.exp(0.2 * generator.standard_normal(STEPS))
    for step, factor in SPIKES[sequence].items():
        norms[step] *= factor
    steps = []
    for norm in norms:
        leaves = [generator.standard_normal(shape) for shape in SHAPES]
        length = np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))
        steps.append([np.asarray(norm / length * leaf, np.float32) for leaf in leaves])
    return steps


def rounded(value):
    """Gives the shortest decimal that is the same float32."""
    return float(str(np.float32(value)))


def run(sequence, settings):
    """Runs ZClip once: the norms before and after, the last mean and variance."""
    import torch  # pyright: ignore[reportMissingImports]
    from zclip import ZClip  # pyright: ignore[reportMissingImports]

    model = torch.nn.ParameterList([torch.zeros(shape) for shape in SHAPES])
    clip = ZClip(**SETTINGS, **settings)
    before, after = [], []
    for leaves in gradients(sequence):
        for parameter, leaf in zip(model.parameters(), leaves, strict=True):
            parameter.grad = torch.tensor(leaf)
        before.append(rounded(clip.step(model)))
        flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        after.append(rounded(flat.norm()))
    return before, after, clip.mean, clip.var


def main():
    """Asks ZClip, in every mode."""
    modes = [
        {"mode": "zscore", "clip_option": "adaptive_scaling", "clip_factor": 1.0},
        {"mode": "zscore", "clip_option": "adaptive_scaling", "clip_factor": 0.8},
        {"mode": "zscore", "clip_option": "mean"},
        {"mode": "percentile"},
    ]
    cases, norms = [], []
    for sequence in range(len(SPIKES)):
        for mode, skip, limit in itertools.product(modes, (False, True), (1.0, None)):
            settings = {**mode, "skip_update_on_spike": skip, "max_grad_norm": limit}
            before, after, mean, variance = run(sequence, settings)
            cases.append({"sequence": sequence, **settings})
            cases[-1] |= {"output_norm": after, "mean": mean, "variance": variance}
        norms.append(before)
    golden = {
        "script": pathlib.Path(__file__).name,
        "source": "zclip.ZClip",
        "zclip": importlib.metadata.version("zclip"),
        "torch": importlib.metadata.version("torch"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "settings": SETTINGS,
        "input_norm": norms,
        "cases": cases,
    }
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
