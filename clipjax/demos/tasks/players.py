"""Places of a clip in a game of two players."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..arms import Arm, ClipCall, OptimizerOf, Place

PLAYERS = ("generator", "discriminator")

Wrap = Callable[[optax.GradientTransformation], optax.GradientTransformation]


def by_player(params: Any) -> Any:
    """Return, for each leaf of the parameters, the name of its player."""
    return jax.tree.map_with_path(lambda path, leaf: path[0].key, params)


def each_with_its_clip(*clipped: str, wraps: Mapping[str, Wrap] | None = None) -> Place:
    """Return the place right before the optimizers of some players.

    Every player has its own optimizer, and every clip gets the gradient of its player
    alone. The log contains the metrics of the first player.

    Args:
        *clipped: the players whose gradients are clipped.
        wraps: by player, a function that wraps the chain of its clip and optimizer.
    """

    def place(clip: ClipCall, optimizer: OptimizerOf) -> Arm:
        def of_player(
            player: str, learning_rate: float | jax.Array
        ) -> optax.GradientTransformation:
            moves = optimizer(learning_rate)
            if player in clipped:
                name = "clip" if player == clipped[0] else player
                moves = optax.chain(clip.build(name), moves)
            wrap = (wraps or {}).get(player)
            return wrap(moves) if wrap else moves

        return Arm(
            lambda learning_rate: optax.partition(
                {player: of_player(player, learning_rate) for player in PLAYERS},
                by_player,
            )
        )

    return place


def at_every(count: int) -> Wrap:
    """Return a player's optimizer that steps at the last one of every `count` steps.

    At the other steps its gradient is not used, and its clip and its optimizer keep
    their states.
    """

    def is_last(step: Any, **unused: Any) -> jax.Array:
        return step % count == count - 1

    return lambda moves: optax.conditionally_mask(moves, is_last)


def weights_within(limit: float) -> optax.GradientTransformation:
    """Project the parameters that a step leads to onto `[-limit, limit]`.

    It is the last part of a chain. The parameters may exceed the limit by a rounding
    error.
    """
    return optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda update, weight: jnp.clip(weight + update, -limit, limit) - weight,
            updates,
            params,
        )
    )
