"""Models of PyTorch, and their gradients: plain, and clipped by Opacus in ghost mode.

Each has the name and the sizes of its twin in `models`, as far as Opacus has them: it
has no tied weights, and its LSTM is a layer of its own, of which PyTorch's is the plain
one. Importing this needs torch and opacus.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.layers import DPLSTM
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn


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

    def __init__(self, width: int, layers: int):
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


class Pair(NamedTuple):
    """A model for the plain gradient, its twin for Opacus, and a batch for both."""

    plain: nn.Module
    private: nn.Module
    batch: tuple[torch.Tensor, torch.Tensor]


def transformer(batch: int, length: int, layers: int, width: int) -> Pair:
    """A causal transformer; the targets are the words that come after the inputs."""
    words = torch.randint(2000, (batch, length))
    examples = words, words.roll(-1, dims=1)
    return Pair(Transformer(width, layers), Transformer(width, layers), examples)


def perceptron(batch: int, *widths: int) -> Pair:
    """Dense layers, the last of which has no bias."""

    def make() -> nn.Module:
        hidden = [
            layer
            for rows, columns in itertools.pairwise(widths[:-1])
            for layer in (nn.Linear(rows, columns), nn.ReLU())
        ]
        return nn.Sequential(*hidden, nn.Linear(widths[-2], widths[-1], bias=False))

    return Pair(make(), make(), images(batch, widths[0]))


def lstm(batch: int, length: int) -> Pair:
    """An LSTM: of PyTorch, and Opacus's own layer."""
    return Pair(Recurrent(nn.LSTM), Recurrent(DPLSTM), images(batch, length, 64))


def convolutional(batch: int) -> Pair:
    """Two convolutions and two dense layers, without biases."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            *(nn.ReLU(), nn.MaxPool2d(2)),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            *(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(3136, 128, bias=False), nn.ReLU()),
            nn.Linear(128, 10, bias=False),
        )

    return Pair(make(), make(), images(batch, 1, 28, 28))


def images(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make inputs and labels."""
    return 0.05 * torch.randn(*shape), torch.randint(10, shape[:1])


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
