"""Opacus in ghost mode against its own plain step, on CPU.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0
    torch-venv/bin/pip install opacus==1.6.0
    torch-venv/bin/python -m benchmarks.per_example.torch_opacus

prints the time of a gradient clipped per example relative to the plain gradient of the
same PyTorch model, as the median of the ratios in rounds of shuffled order. The models
are those of `benchmarks.per_example` as far as Opacus has them: it has no tied weights,
and its LSTM is a layer of its own, of which PyTorch's is the plain one.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.layers import DPLSTM
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn

ROUNDS = 9


class Block(nn.Module):
    """Attention and two dense layers, of layers that Opacus knows."""

    def __init__(self, width: int, heads: int):
        """Makes the layers."""
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.kernels = nn.ModuleList(
            [nn.Linear(width, width, bias=False) for _ in "qkvo"]
        )
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Adds to the residual stream."""
        inputs = self.norms[0](hidden)
        split = (*inputs.shape[:2], self.heads, -1)
        parts = [
            kernel(inputs).reshape(split).transpose(1, 2) for kernel in self.kernels[:3]
        ]
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        hidden = hidden + self.kernels[3](mixed.transpose(1, 2).reshape(inputs.shape))
        wide = nn.functional.gelu(self.up(self.norms[1](hidden)))
        return hidden + self.down(wide)


class Transformer(nn.Module):
    """A causal transformer over 2,000 words."""

    def __init__(self, width: int = 256, layers: int = 4):
        """Makes the layers."""
        super().__init__()
        self.embedding = nn.Embedding(2000, width)
        self.blocks = nn.Sequential(*[Block(width, 4) for _ in range(layers)])
        self.out = nn.Linear(width, 2000, bias=False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Gives scores of the next word."""
        return self.out(self.blocks(self.embedding(words)))


class Recurrent(nn.Module):
    """An LSTM and a dense layer."""

    def __init__(self, cell: type[nn.Module], width: int = 128):
        """Makes the layers."""
        super().__init__()
        self.cell = cell(64, width, batch_first=True)
        self.out = nn.Linear(width, 10, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Gives scores of the classes."""
        return self.out(self.cell(inputs)[0][:, -1])


def perceptron() -> nn.Module:
    """Four dense layers."""
    sizes = [784, 512, 512, 512]
    layers = [
        layer
        for rows, columns in zip(sizes[:-1], sizes[1:], strict=True)
        for layer in (nn.Linear(rows, columns), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.Linear(512, 10, bias=False))


def convolutional() -> nn.Module:
    """Two convolutions and two dense layers, without biases."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        *(nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        *(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(3136, 128, bias=False), nn.ReLU()),
        nn.Linear(128, 10, bias=False),
    )


def images(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes inputs and labels."""
    return 0.05 * torch.randn(*shape), torch.randint(10, shape[:1])


def text(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes words, and the words that come after them."""
    words = torch.randint(2000, (batch, length))
    return words, words.roll(-1, dims=1)


# The plain model, that of Opacus, and a batch.
MODELS = {
    "transformer, 16 x 128 words": lambda: (
        Transformer(),
        Transformer(),
        text(16, 128),
    ),
    "transformer, 64 x 32 words": lambda: (
        Transformer(),
        Transformer(),
        text(64, 32),
    ),
    "perceptron, 256 images": lambda: (perceptron(), perceptron(), images(256, 784)),
    "LSTM, 32 x 64 steps": lambda: (
        Recurrent(nn.LSTM),
        Recurrent(DPLSTM),
        images(32, 64, 64),
    ),
    "convolutional net, 64 images": lambda: (
        convolutional(),
        convolutional(),
        images(64, 1, 28, 28),
    ),
}


def plain_step(model: nn.Module, inputs, targets) -> Callable[[], None]:
    """Makes a function that computes the gradient of the mean loss."""
    criterion = nn.CrossEntropyLoss()

    def step() -> None:
        model.zero_grad()
        scores = model(inputs)
        loss = criterion(scores.reshape(-1, scores.shape[-1]), targets.reshape(-1))
        loss.backward()

    return step


def ghost_step(model: nn.Module, inputs, targets) -> Callable[[], None]:
    """Makes a function that computes the sum of clipped gradients, without noise."""
    wrapped = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=1.0, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(wrapped.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        expected_batch_size=len(inputs),
    )
    criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss())

    def step() -> None:
        optimizer.zero_grad()
        scores = wrapped(inputs)
        flat = scores.reshape(-1, scores.shape[-1])
        shape = scores.shape if scores.ndim == 3 else None
        criterion(flat, targets.reshape(-1), shape=shape).backward()

    return step


def ratio(steps: list[Callable[[], None]]) -> float:
    """Gives the median ratio of the second step's time to the first's."""
    ratios, shuffle = [], random.Random(0).shuffle
    for number in range(ROUNDS + 1):
        order, seconds = [0, 1], [0.0, 0.0]
        shuffle(order)
        for which in order:
            start = time.perf_counter()
            steps[which]()
            seconds[which] = time.perf_counter() - start
        if number:
            ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def main() -> None:
    """Prints a table."""
    torch.manual_seed(0)
    print("| time relative to the plain gradient | Opacus, ghost |")
    print("|---|---|")
    for name, make in MODELS.items():
        plain, private, batch = make()
        steps = [plain_step(plain, *batch), ghost_step(private, *batch)]
        print(f"| {name} | {ratio(steps):.2f} |", flush=True)


if __name__ == "__main__":
    main()
