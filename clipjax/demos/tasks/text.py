"""Predict the next character of a text."""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..files import read_limited
from .base import Batch, Task, cross_entropy

LARGEST = 2**28  # bytes; numbering the characters takes some 20 times as many
HELD_OUT_WINDOWS = 64  # sequences that the held-out loss is averaged over


def default_text() -> str:
    """Return the language reference in CPython, about 465,000 characters."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def read_text(path: pathlib.Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        ValueError: if the file cannot be read, is too large or is not UTF-8.
    """
    try:
        return read_limited(path, LARGEST).decode("utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"cannot read text file {str(path)!r} ({reason}); "
            "accepted: any readable UTF-8 text file"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text file {str(path)!r} is not UTF-8 (byte {error.start}); "
            "accepted: any readable UTF-8 text file"
        ) from error


def encode(text: str) -> tuple[np.ndarray, int]:
    """Number the distinct characters; return `(tokens, size of the vocabulary)`."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    characters, tokens = np.unique(points, return_inverse=True)
    return tokens.astype(np.int32), len(characters)


def _windows(tokens: jax.Array, starts: jax.Array, length: int) -> Batch:
    taken = tokens[starts[:, None] + jnp.arange(length + 1)[None]]
    return taken[:, :-1], taken[:, 1:]


def text_task(
    build: Callable[[int, jax.Array], nnx.Module],
    *,
    path: pathlib.Path | None = None,
    batch: int = 32,
    length: int = 100,
) -> Task:
    """Return character-level language modeling; the last tenth of the text is held out.

    Args:
        build: `(vocabulary, key)` to a model that maps tokens to logits.
        path: a UTF-8 text file; without one, `default_text`.
        batch: sequences per step.
        length: characters per sequence.

    Raises:
        ValueError: if the file is unreadable, not UTF-8 or too short.
    """
    text = default_text() if path is None else read_text(path)
    needed = 10 * (length + 1)
    if len(text) < needed:
        raise ValueError(
            f"text {str(path or 'built in')!r} has {len(text)} characters; "
            f"sequences of length {length} need a text of at least {needed}"
        )
    tokens, vocabulary = encode(text)
    cut = len(tokens) - len(tokens) // 10

    def sample(key: jax.Array, step: jax.Array, train: jax.Array) -> Batch:
        key = jax.random.fold_in(key, step)
        starts = jax.random.randint(key, (batch,), 0, len(train) - length)
        return _windows(train, starts, length)

    def evaluate(model: Callable, held_out: jax.Array) -> dict[str, jax.Array]:
        last = len(held_out) - length - 1
        count = min(HELD_OUT_WINDOWS, last // length + 1)
        starts = jnp.linspace(0, last, count).astype(jnp.int32)
        batch = _windows(held_out, starts, length)
        loss = cross_entropy(model, batch)
        return {"held-out loss": loss, "perplexity": jnp.exp(loss)}

    origin = "Python's pydoc topics" if path is None else path.name
    return Task(
        source=f"{origin}: {len(text):,} characters, {vocabulary} distinct",
        build=lambda key: build(vocabulary, key),
        train=jnp.asarray(tokens[:cut]),
        held_out=jnp.asarray(tokens[cut:]),
        sample=sample,
        loss=cross_entropy,
        evaluate=evaluate,
        unit="nats per character",
    )
