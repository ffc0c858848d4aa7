"""Runs a transformation for several steps, and checks that its state keeps its form."""

import jax
from oracle import kinds


def run(optimizer, batches, params, state=None, extra=None):
    """Returns the updates and the state of each step; compiles once per optimizer.

    ``extra`` holds the extra arguments of each step. Numbers in them are traced.
    """
    state = optimizer.init(params) if state is None else state
    # JAX keeps what it compiled for one function, however often it is jitted.
    update, found = jax.jit(optimizer.update), []
    for step, grads in enumerate(batches):
        more = {} if extra is None else extra[step]
        updates, new = update(grads, state, params, **more)
        assert kinds(new) == kinds(state)
        assert kinds(updates) == kinds(grads)
        state = new
        found.append((updates, state))
    return found
