"""Build the data and the model of a task from its options."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from .. import presets
from ..models.diffusion import Denoiser
from ..models.flow import Flow
from ..models.mlp import MLP
from ..models.potential import Potential
from ..models.rnn import RNN
from ..models.transformer import Transformer
from .base import Task
from .critic import critic_task
from .diffusion import diffusion_task
from .flow import flow_task
from .mnist import CLASSES, PIXELS, mnist_task
from .potential import potential_task
from .precision import precision_task
from .ring import Ring, ring_task
from .robust import label_noise_task, outlier_task
from .text import text_task


def _rnn(model: presets.RNN) -> Task:
    return text_task(
        lambda vocabulary, key: RNN(
            vocabulary,
            hidden=model.hidden,
            layers=model.layers,
            cell=model.cell,
            gain=model.gain,
            rngs=nnx.Rngs(params=key),
        ),
        path=model.text,
        batch=model.batch,
        length=model.length,
    )


def _mlp(model: presets.MLP) -> Task:
    return mnist_task(
        lambda key: MLP(
            PIXELS,
            CLASSES,
            depth=model.depth,
            width=model.width,
            init=model.init,
            normalisation=model.normalisation,
            rngs=nnx.Rngs(params=key),
        ),
        directory=model.mnist,
        batch=model.batch,
    )


def _transformer(model: presets.Transformer) -> Task:
    return text_task(
        lambda vocabulary, key: Transformer(
            vocabulary,
            context=model.length,
            layers=model.layers,
            width=model.width,
            heads=model.heads,
            rngs=nnx.Rngs(params=key),
        ),
        path=model.text,
        batch=model.batch,
        length=model.length,
    )


def _ring(model: presets.Ring) -> Task:
    return ring_task(
        Ring(model.radius, model.deviation),
        noise=model.noise,
        width=model.width,
        batch=model.batch,
    )


def _critic(model: presets.Critic) -> Task:
    return critic_task(
        Ring(model.radius, model.deviation),
        noise=model.noise,
        width=model.width,
        batch=model.batch,
        critic_steps=model.critic_steps,
        penalty=model.penalty,
        weight_clip=model.weight_clip,
    )


def _potential(model: presets.Potential) -> Task:
    return potential_task(
        lambda key: Potential(width=model.width, rngs=nnx.Rngs(params=key)),
        batch=model.batch,
        contacts=model.contacts,
    )


def _diffusion(model: presets.Diffusion) -> Task:
    return diffusion_task(
        lambda key: Denoiser(width=model.width, rngs=nnx.Rngs(params=key)),
        batch=model.batch,
        weighting=model.weighting,
    )


def _flow(model: presets.Flow) -> Task:
    return flow_task(
        lambda key: Flow(
            layers=model.layers, width=model.width, rngs=nnx.Rngs(params=key)
        ),
        batch=model.batch,
        stretch=model.stretch,
        bend=model.bend,
    )


def _digits(model: presets.LabelNoise | presets.Precision, key: jax.Array) -> MLP:
    rngs = nnx.Rngs(params=key)
    return MLP(PIXELS, CLASSES, depth=model.depth, width=model.width, rngs=rngs)


def _outliers(model: presets.Outliers) -> Task:
    return outlier_task(**vars(model))


def _label_noise(model: presets.LabelNoise) -> Task:
    return label_noise_task(
        functools.partial(_digits, model),
        noise=model.noise,
        directory=model.mnist,
        batch=model.batch,
    )


def _precision(model: presets.Precision) -> Task:
    return precision_task(
        functools.partial(_digits, model),
        scale=model.scale,
        directory=model.mnist,
        batch=model.batch,
    )


BUILDERS: dict[type, Callable[[Any], Task]] = {
    presets.RNN: _rnn,
    presets.MLP: _mlp,
    presets.Transformer: _transformer,
    presets.Ring: _ring,
    presets.Critic: _critic,
    presets.Potential: _potential,
    presets.Diffusion: _diffusion,
    presets.Flow: _flow,
    presets.Outliers: _outliers,
    presets.LabelNoise: _label_noise,
    presets.Precision: _precision,
}


def build_task(model: presets.Model) -> Task:
    """Return the task, with data and model, that the options describe.

    Raises:
        ValueError: if a file is unreadable, malformed or too small.
    """
    return BUILDERS[type(model)](model)
