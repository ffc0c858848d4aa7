"""Makes autoclip.json: what AutoClip and QuantileClip of PyTorch do to gradients.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0 numpy pytorch-ignite==0.5.5
    torch-venv/bin/pip install --no-deps autoclip==0.2.1
    torch-venv/bin/python tests/golden/make_autoclip.py autoclip.py

The argument is the file `autoclip.py` of the GitHub repository pseeth/autoclip, at
commit 7de6a2fc43553eace2daf384301a712808a98b01; the JSON keeps its SHA-256. The
gradients are not stored: `gradients` makes them again. Norms and thresholds hold one
list for each statistic: one when all the leaves share it, else one for each leaf.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import sys

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name("autoclip.json")
STEPS = 60
SHAPES = ((3,), (2, 2))
SPIKES = {12: 10.0, 30: 100.0, 31: 0.1, 45: 10.0}


def gradients():
    """Makes the sequence: log-normal norms with spikes, in random directions."""
    generator = np.random.default_rng(0)
    norms = np.exp(0.2 * generator.standard_normal(STEPS))
    for step, factor in SPIKES.items():
        norms[step] *= factor
    steps = []
    for norm in norms:
        leaves = [generator.standard_normal(shape) for shape in SHAPES]
        length = np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))
        steps.append([np.asarray(norm / length * leaf, np.float32) for leaf in leaves])
    return steps


def rounded(value):
    """Gives the shortest decimal that is the same float32, or the word inf."""
    return "inf" if np.isinf(value) else float(str(np.float32(value)))


def run(make_step):
    """Clips the sequence and records each threshold given to clip_grad_norm_."""
    import torch  # pyright: ignore[reportMissingImports]

    model = torch.nn.ParameterList([torch.zeros(shape) for shape in SHAPES])
    clip_grad_norm_, calls = torch.nn.utils.clip_grad_norm_, []

    def recorded(parameters, max_norm):
        total = clip_grad_norm_(parameters, max_norm)
        calls.append((rounded(total.item()), rounded(float(max_norm))))
        return total

    torch.nn.utils.clip_grad_norm_ = recorded
    step, clipped = make_step(model), []
    for leaves in gradients():
        for parameter, leaf in zip(model.parameters(), leaves, strict=True):
            parameter.grad = torch.tensor(leaf)
        step()
        flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        clipped.append([rounded(value) for value in flat.tolist()])
    torch.nn.utils.clip_grad_norm_ = clip_grad_norm_
    norms, thresholds = np.reshape(np.array(calls, object), (STEPS, -1, 2)).T.tolist()
    return {"input_norm": norms, "threshold": thresholds, "clipped": clipped}


class Engine:
    """Stands in for ignite's engine: keeps the handler, so that it can be called."""

    def on(self, event):
        return lambda handler: setattr(self, "handler", handler)


def main():
    """Asks AutoClip for three percentiles, and QuantileClip twice."""
    import autoclip.torch  # pyright: ignore[reportMissingImports]

    source = pathlib.Path(sys.argv[1])
    spec = importlib.util.spec_from_file_location("reference", source)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    cases = []
    for percentile in (10, 25, 50):

        def make_step(model, percentile=percentile):
            engine = Engine()
            reference.add_autoclip_gradient_handler(engine, model, percentile)
            return lambda: engine.handler(engine)

        cases.append({"method": "AutoClip", "percentile": percentile, **run(make_step)})
    for together in (True, False):
        settings = {"quantile": 0.9, "history_length": 20, "global_threshold": together}
        answers = run(
            lambda model, settings=settings: (
                autoclip.torch.QuantileClip(model.parameters(), **settings).step
            )
        )
        cases.append({"method": "QuantileClip", **settings, **answers})
    versions = ("torch", "numpy", "pytorch-ignite", "autoclip")
    golden = {
        "script": pathlib.Path(__file__).name,
        "source": "pseeth/autoclip autoclip.py; autoclip.torch.QuantileClip",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        **{package: importlib.metadata.version(package) for package in versions},
        "python": platform.python_version(),
        "cases": cases,
    }
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
