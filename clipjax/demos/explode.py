"""One exploding gradient in detail: a clipped step, and one bad time step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import clipjax

from .tasks.base import Batch, Task
from .train import begin


class Step(NamedTuple):
    """One clipped step of gradient descent; all scalars.

    Attributes:
        loss: loss before the step.
        before: norm of the gradient.
        threshold: the largest norm that the clip allows.
        factor: the clip's factor on the gradient.
        after: norm of the clipped gradient.
        update: length of the step in parameter space, learning rate times `after`.
        unclipped: length of the step without the clip.
    """

    loss: jax.Array
    before: jax.Array
    threshold: jax.Array
    factor: jax.Array
    after: jax.Array
    update: jax.Array
    unclipped: jax.Array


class BadStep(NamedTuple):
    """The effect of one wrong output on backpropagation through time.

    Attributes:
        hidden: norm of the derivative of the bad step's loss with respect to the
            hidden state k steps before it, at index k.
        bound: an upper bound of the growth of `hidden`, from the largest singular value
            of the recurrent matrix.
        singular: that singular value.
        radius: spectral radius of the recurrent matrix.
        normal: norm of the whole gradient, all steps alike.
        bad: norm of the whole gradient with the bad step.
        clipped: `bad` after clipping.
    """

    hidden: np.ndarray
    bound: np.ndarray
    singular: float
    radius: float
    normal: jax.Array
    bad: jax.Array
    clipped: jax.Array


class Network(NamedTuple):
    """The network, and the one batch that all gradients here are computed from."""

    task: Task
    graph: Any
    params: Any
    batch: Batch
    recurrent: np.ndarray

    def loss(self, params: Any) -> jax.Array:
        """Return the mean loss over all time steps."""
        return self.task.loss(nnx.merge(self.graph, params), self.batch)

    def time_losses(self, params: Any, nudges: jax.Array) -> jax.Array:
        """Return the mean loss of each time step, with nudges added to hidden states.

        `nudges` have shape `(time, batch, hidden)`, the result `(time,)`. The
        derivative with respect to a nudge of zero is the derivative with respect
        to the hidden state itself.
        """
        model = nnx.merge(self.graph, params)
        tokens, targets = self.batch
        characters = jax.nn.one_hot(tokens.T, model.vocabulary)

        def advance(hidden, inputs):
            character, nudge = inputs
            hidden = model.cells[0](hidden, character)[0] + nudge
            return hidden, hidden

        start = jnp.zeros(nudges.shape[1:])
        _, hidden = jax.lax.scan(advance, start, (characters, nudges))
        losses = optax.softmax_cross_entropy_with_integer_labels(
            model.readout(hidden), targets.T
        )
        return losses.mean(axis=1)


def build(task: Task) -> Network:
    """Return the initial weights and the first batch of seed 0."""
    start = begin(task, seed=0)
    model = nnx.merge(start.static[0], start.params)
    return Network(
        task,
        graph=start.static[0],
        params=start.params,
        batch=task.sample(start.batches, 0, task.train),
        recurrent=np.asarray(model.cells[0].dense_h.kernel[...], np.float64),
    )


def clipped_step(network: Network, *, max_norm: float, lr: float) -> Step:
    """Return all quantities of one step of clipped gradient descent."""
    optimizer = optax.chain(clipjax.clip_by_global_norm(max_norm), optax.sgd(lr))

    @jax.jit
    def step(params) -> Step:
        loss, grads = jax.value_and_grad(network.loss)(params)
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        measured = clipjax.metrics(state)
        return Step(
            loss=loss,
            before=measured["clip/grad_norm_raw"],
            threshold=measured["clip/threshold"],
            factor=measured["clip/clip_ratio"],
            after=measured["clip/grad_norm_clipped"],
            update=optax.tree.norm(updates),
            unclipped=lr * measured["clip/grad_norm_raw"],
        )

    return step(network.params)


def bad_time_step(
    network: Network, *, bad_step: int, error: float, max_norm: float
) -> BadStep:
    """Multiply the loss of one time step and follow it back through time.

    Args:
        network: what `build` returned.
        bad_step: the time step t, counted from 1.
        error: factor on its loss.
        max_norm: threshold of the clip.
    """
    tokens, _ = network.batch
    time, batch = tokens.shape[1], tokens.shape[0]
    hidden = network.recurrent.shape[0]
    clip = clipjax.clip_by_global_norm(max_norm)
    nudges = jnp.zeros((time, batch, hidden))

    def whole(params, weights):
        return (weights * network.time_losses(params, nudges)).mean()

    @jax.jit
    def measure(params):
        through_time = jax.grad(
            lambda nudges: error * network.time_losses(params, nudges)[bad_step - 1]
        )(nudges)
        even = jnp.ones(time)
        bad = jax.grad(whole)(params, even.at[bad_step - 1].set(error))
        clipped, _ = clip.update(bad, clip.init(params), params)
        return (
            jnp.sqrt(jnp.square(through_time).sum(axis=(1, 2))),
            optax.tree.norm(jax.grad(whole)(params, even)),
            optax.tree.norm(bad),
            optax.tree.norm(clipped),
        )

    along_time, normal, bad, clipped = measure(network.params)
    backwards = np.asarray(along_time)[bad_step - 1 :: -1]
    singular = float(np.linalg.norm(network.recurrent, 2))
    radius = float(np.abs(np.linalg.eigvals(network.recurrent)).max())
    bound = backwards[0] * singular ** np.arange(bad_step)
    return BadStep(backwards, bound, singular, radius, normal, bad, clipped)
