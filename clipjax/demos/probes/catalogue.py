"""The names of the probes; nothing is imported before one of them is run."""

import importlib
from types import ModuleType
from typing import NamedTuple

from ..options import did_you_mean


class Entry(NamedTuple):
    """One probe.

    Attributes:
        summary: what the probe measures, for the list on the command line.
        is_experiment: whether its numbers are compared with numbers reported elsewhere,
            so that `clipjax probe experiments` runs it.
    """

    summary: str
    is_experiment: bool = False


# The name of a probe is that of its module, with "-" in place of "_".
PROBES = {
    "adam-epsilon": Entry("Adam's epsilon as a soft clip of every coordinate", True),
    "adam-spike": Entry(
        "Adam after one spike, with and without a clip before it", True
    ),
    "adam-thresholds": Entry("Adam on MNIST by threshold and by epsilon", True),
    "attention-scaling": Entry(
        "variance and gradient of attention logits with and without 1/sqrt(d)", True
    ),
    "outliers": Entry("a regression with wrong examples, each clipped by itself", True),
    "influence": Entry("share of one example in a step, and its effect on the result"),
    "quartic": Entry("clipped descent on a fourth power: tuned, and by theory", True),
    "cosh": Entry("thresholds from known L0 and L1: L0/L1 against 1/L1", True),
    "descent": Entry("when the loss falls at each clipped step, and 2-cycles", True),
    "rates": Entry("learning rates that converge, with and without a clip", True),
    "newton": Entry("a soft clip against Newton's method on a quadratic", True),
    "general-smoothness": Entry("a step 1/l(|g|) as a rule of one's own"),
    "smoothness-fit": Entry("smoothness against gradient norm of an MLP", True),
    "bias": Entry("where descent ends if examples or batches are clipped", True),
    "minimizers": Entry(
        "which least-squares minimizer each kind of clip reaches", True
    ),
    "implicit-penalty": Entry("norms and margins of separable logistic data", True),
    "heavy-tails": Entry("a quadratic with Student t noise, by threshold", True),
    "per-worker": Entry("clips of workers against the clip of their mean", True),
    "weight-decay": Entry("L2 and L1 with a clip, and the spectral radius", True),
    "quantization": Entry("int8 gradients with and without a clip", True),
    "threshold-traps": Entry("thresholds that a spike lifts, or that collapse", True),
    "alarms": Entry("how often thresholds from recorded norms clip", True),
    "deep-mlp": Entry("a ReLU net of ten layers by initialization and clip", True),
    "heat-map": Entry("loss of that net by learning rate and threshold", True),
    "loss-weights": Entry("where a threshold by diffusion time step has to act", True),
    "low-precision": Entry("loss scale, overflow and underflow in 16 bits", True),
    "recurrent-rates": Entry("highest stable learning rates of recurrent nets", True),
    "sensitivity": Entry("sensitivity to one example, and noise that hides it", True),
    "game": Entry("distance from the equilibrium of a game on xy, with a clip", True),
    "ring": Entry("modes that a GAN covers, by the generator's threshold", True),
    "concatenation": Entry("Jacobian norms of summed and concatenated branches", True),
    "costates": Entry("the costates of optimal control beside jax.grad", True),
    "deep-nets": Entry("gradients of 10 and 50 layers by normalization", True),
    "depthwise": Entry("gains of depthwise-separable and standard convolutions", True),
    "euler": Entry("forward Euler steps of stable systems that diverge", True),
    "flow-jacobian": Entry("determinant 1 with a large norm", True),
    "normalization-bounds": Entry("Jacobian norms of layer and batch norm", True),
    "recurrent-gates": Entry("Jacobians of GRU and LSTM by gate bias", True),
    "residual": Entry("products of Jacobians through 1,000 residual layers", True),
    "skips": Entry("gradients of an encoder and decoder with skips", True),
    "spectral-radius": Entry("which number of a matrix predicts explosion", True),
    "potential-regions": Entry(
        "errors of a potential's wall and main region by threshold", True
    ),
}

GROUPS = {
    "all": tuple(PROBES),
    "experiments": tuple(name for name, entry in PROBES.items() if entry.is_experiment),
}


def load(name: str) -> ModuleType:
    """Return the module of a probe, with its functions `measure` and `report`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in PROBES:
        accepted = ", ".join((*PROBES, *GROUPS))
        hint = did_you_mean(name, (*PROBES, *GROUPS))
        raise ValueError(f"unknown probe {name!r}{hint}; accepted: {accepted}")
    return importlib.import_module(f".{name.replace('-', '_')}", __package__)
