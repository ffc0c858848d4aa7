"""The costates of optimal control are the gradients of backpropagation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...plotting import plot_lines
from ..options import Positive, Whole
from .arguments import require
from .base import Report, beside, number


class Measured(NamedTuple):
    """The costates p_t of x_t = tanh(W x_(t-1) + u_t), with loss |x_T|² / 2.

    Attributes:
        costates: `(steps + 1, width)`, from the recursion p_T = x_T,
            p_(t-1) = Wᵀ diag(1 - x_t²) p_t, in NumPy.
        gradients: the same from `jax.grad`, with respect to each state.
        controls: `(steps, width)`, diag(1 - x_t²) p_t: the derivative of the
            Hamiltonian with respect to u_t.
        control_gradients: the same from `jax.grad`.
    """

    costates: np.ndarray
    gradients: np.ndarray
    controls: np.ndarray
    control_gradients: np.ndarray

    @property
    def difference(self) -> float:
        """The largest difference, relative to the largest entry."""
        return max(
            float(np.abs(found - wanted).max() / np.abs(wanted).max())
            for found, wanted in (
                (self.costates, self.gradients),
                (self.controls, self.control_gradients),
            )
        )


def measure(
    *, seed: int = 0, steps: int = 20, width: int = 16, gain: float = 1.0
) -> Measured:
    """Run the recursion and automatic differentiation in float64.

    Args:
        seed: of weights, controls and the first state.
        steps: number of time steps.
        width: of the state.
        gain: W is Gaussian with variance gain² / width.
    """
    require(Whole(), steps=steps, width=width)
    require(Whole(lowest=0), seed=seed)
    require(Positive(), gain=gain)
    random = np.random.default_rng(seed)
    weights = random.normal(0, gain * width**-0.5, (width, width))
    controls = random.normal(0, 0.1, (steps, width))
    start = random.normal(size=width)

    states = [start]
    for control in controls:
        states.append(np.tanh(weights @ states[-1] + control))
    costates, hamiltonian = [states[-1]], []
    for state in states[:0:-1]:
        hamiltonian.append((1 - state**2) * costates[-1])
        costates.append(weights.T @ hamiltonian[-1])

    with jax.enable_x64(True):

        def loss(nudges: jax.Array, controls: jax.Array) -> jax.Array:
            # The derivative by a nudge of zero is that by the state itself.
            def advance(state, entry):
                nudge, control = entry
                return jnp.tanh(jnp.asarray(weights) @ state + control) + nudge, None

            final, _ = jax.lax.scan(advance, start + nudges[0], (nudges[1:], controls))
            return jnp.square(final).sum() / 2

        nudges = jnp.zeros((steps + 1, width))
        gradients = jax.jit(jax.grad(loss, (0, 1)))(nudges, jnp.asarray(controls))
        by_state, by_control = map(np.asarray, gradients)
    return Measured(
        np.stack(costates[::-1]), by_state, np.stack(hamiltonian[::-1]), by_control
    )


def report(measured: Measured) -> Report:
    """The difference next to the reported one, and the norms over time."""
    rows = [("largest relative difference", "2e-16", measured.difference)]
    figure = plot_lines(
        {
            "costate": np.linalg.norm(measured.costates, axis=1),
            "jax.grad": np.linalg.norm(measured.gradients, axis=1),
        },
        x_label="time step",
        y_label="norm",
        title="Costates of a recurrent net",
        is_log=(False, True),
    )
    epsilons = measured.difference / np.finfo(np.float64).eps
    return Report(
        [beside("The costate recursion beside jax.grad, in float64", rows)],
        [
            f"They differ by {number(epsilons)} times the precision of float64: "
            + ("rounding." if epsilons < 1000 else "more than rounding."),
        ],
        figure,
    )
