"""How far the Jacobian of a gated recurrent cell is from the identity."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...diagnostics import jacobian_product_report, jacobian_report
from ...plotting import plot_lines
from ..models.rnn import CELLS
from ..options import Positive, Whole
from .arguments import require
from .base import Report, beside, number

OPEN = 10.0  # bias of an open gate: sigmoid(10) is 0.99995


class Measured(NamedTuple):
    """Arrays of shape `(seeds, biases)`, for a gate bias of `biases[i]`.

    Attributes:
        biases: `(biases,)`, the bias of the gate that keeps the state: the update gate
            z of the GRU, the forget gate of the LSTM.
        steps: number of time steps.
        gru_distance: spectral norm of J - I, with J the Jacobian of one step from
            hidden state to hidden state.
        gru_product: spectral norm of the product of the Jacobians of all steps.
        lstm_distance: as for the GRU, from cell state to cell state.
        lstm_product: as for the GRU, of the pair of cell state and hidden state.
    """

    biases: np.ndarray
    steps: int
    gru_distance: np.ndarray
    gru_product: np.ndarray
    lstm_distance: np.ndarray
    lstm_product: np.ndarray


def measure(
    *, seeds: int = 3, hidden: int = 32, steps: int = 100, gain: float = 1.5
) -> Measured:
    """Unroll cells without inputs, from a state drawn from the normal distribution.

    The candidate of the GRU sees the whole state (its reset gate is open), so that a
    closed update gate leaves a plain recurrent net.

    Args:
        seeds: independent weights and first states.
        hidden: width of the hidden state.
        steps: time steps.
        gain: factor on the candidate's recurrent weights, which are Gaussian with
            variance 1 / hidden like those of the gates; above 1 the plain recurrent net
            can explode.
    """
    require(Whole(), seeds=seeds, hidden=hidden, steps=steps)
    require(Positive(), gain=gain)
    biases = np.array([-6, -4, -2, 0, 2, 4, 6])
    nothing = jnp.zeros((steps, 1))

    def one(cell_of: type, key: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
        weights, drawn = jax.random.split(key)
        normal = nnx.initializers.normal(hidden**-0.5)
        cell = cell_of(
            1, hidden, recurrent_kernel_init=normal, rngs=nnx.Rngs(params=weights)
        )
        part = slice(2 * hidden, 3 * hidden)  # of both cells
        kernel = cell.dense_h.kernel
        kernel[...] = kernel[...].at[:, part].multiply(gain)
        start = jax.random.normal(drawn, (hidden,))
        if cell_of is CELLS["gru"]:
            biases = [OPEN, bias, 0.0]  # reset, update, candidate
            cell.dense_i.bias[...] = jnp.repeat(jnp.stack(biases), hidden)

            def change(state):
                return cell(state, nothing[0])[0] - state

        else:
            biases = [0.0, bias, 0.0, 0.0]  # input, forget, candidate, output
            cell.dense_h.bias[...] = jnp.repeat(jnp.stack(biases), hidden)

            # From cell state to cell state, with the hidden state held.
            def change(state):
                return cell((state, jnp.tanh(start)), nothing[0])[0][0] - state

        distance = jacobian_report(change, start).spectral_norm
        first = start if cell_of is CELLS["gru"] else (start, jnp.tanh(start))
        chain = jacobian_product_report(
            lambda state, entry: cell(state, entry)[0], first, nothing
        )
        return distance, chain.log_norms[-1]

    def grid(name: str) -> list[np.ndarray]:
        def of_seed(key):
            run = functools.partial(one, CELLS[name], key)
            return jax.lax.map(run, jnp.float32(biases))

        keys = jax.random.split(jax.random.key(0), seeds)
        distance, log_norm = jax.jit(lambda keys: jax.lax.map(of_seed, keys))(keys)
        return [np.asarray(distance), np.exp(np.asarray(log_norm, np.float64))]

    return Measured(biases, steps, *grid("gru"), *grid("lstm"))


def report(measured: Measured) -> Report:
    """Distances and products next to reported ones for the GRU."""
    said = {-6: ("2.6", "120"), 2: (None, "3.2"), 6: (".027", "1.4")}
    place = {bias: list(measured.biases).index(bias) for bias in said}
    rows = [
        (f"GRU, {name}, gate bias {bias}", texts[index], values[:, place[bias]])
        for index, (name, values) in enumerate(
            [
                ("‖J − I‖", measured.gru_distance),
                (f"product of {measured.steps}", measured.gru_product),
            ]
        )
        for bias, texts in said.items()
    ]
    rows += [
        (f"LSTM, {name}, gate bias {bias}", None, values[:, place[bias]])
        for name, values in (
            ("‖∂c/∂c − I‖", measured.lstm_distance),
            (f"product of {measured.steps}", measured.lstm_product),
        )
        for bias in said
    ]
    figure = plot_lines(
        {
            "GRU, ‖J − I‖": measured.gru_distance,
            "LSTM, ‖∂c/∂c − I‖": measured.lstm_distance,
        },
        measured.biases,
        x_label="bias of the gate that keeps the state",
        y_label="distance from the identity",
        title="One step of a gated cell",
        is_log=(False, True),
    )
    falls = all(
        (np.diff(np.median(values, axis=0)) < 0).all()
        for values in (measured.gru_distance, measured.lstm_distance)
    )
    spread = measured.gru_product.max(axis=0) / measured.gru_product.min(axis=0)
    return Report(
        [beside("Jacobians of gated cells", rows)],
        [
            "The distance of the Jacobian from the identity "
            + ("falls" if falls else "does not always fall")
            + " as the bias rises.",
            "Between seeds the product of the GRU differs by a factor of "
            f"{number(spread[place[-6]])} at bias -6 and {number(spread[place[6]])} at "
            "bias 6; the reported numbers came without their weights and states.",
        ],
        figure,
    )
