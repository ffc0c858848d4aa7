"""Text and digits: splits, batches, formats and what is refused."""

import gzip
import pathlib
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.demos.tasks import mnist, text


def no_model(*unused):
    raise AssertionError("the data alone must not build a model")


def test_default_text_is_split_nine_to_one():
    task = text.text_task(no_model)
    total = len(task.train) + len(task.held_out)
    assert total == len(text.default_text()) > 400_000
    assert len(task.held_out) == total // 10
    assert f"{total:,}" in task.source


def test_targets_are_the_next_characters(tmp_path):
    content = "".join(chr(ord("a") + (7 * i) % 26) for i in range(500)) + "é€𝄞"
    path = tmp_path / "some.txt"
    path.write_text(content, encoding="utf-8")
    task = text.text_task(no_model, path=path, batch=4, length=12)
    tokens, vocabulary = text.encode(content)
    assert vocabulary == 29
    np.testing.assert_array_equal(np.concatenate([task.train, task.held_out]), tokens)
    inputs, targets = task.sample(jax.random.key(3), 0, task.train)
    assert inputs.shape == targets.shape == (4, 12)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    flat = " ".join(map(str, np.asarray(task.train)))
    for row, following in zip(inputs, targets, strict=True):
        window = [*map(str, np.asarray(row)), str(following[-1])]
        assert " ".join(window) in flat


def test_held_out_loss_of_a_uniform_model_is_log_vocabulary(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("abcdefgh" * 50)
    task = text.text_task(no_model, path=path, length=10)
    scores = task.evaluate(lambda tokens: jnp.zeros((*tokens.shape, 8)), task.held_out)
    assert float(scores["held-out loss"]) == pytest.approx(np.log(8), rel=1e-6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"\xff\xfe\x00", "UTF-8"), (b"too short", "at least")],
)
def test_unusable_text_is_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "unusable.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="unusable.txt") as caught:
        text.text_task(no_model, path=path)
    assert reason in str(caught.value)


def test_built_in_digits_are_4000_and_1000_and_mixed():
    task = mnist.mnist_task(no_model, batch=32)
    assert task.train.images.shape == (4000, 784)
    assert task.held_out.images.shape == (1000, 784)
    for labels in (task.train.labels, task.held_out.labels):
        counts = np.bincount(labels, minlength=10)
        assert counts.sum() == len(labels) and counts.min() > 0.08 * len(labels)
    images, labels = task.sample(jax.random.key(0), 0, task.train)
    assert images.shape == (32, 784) and labels.shape == (32,)
    assert images.dtype == jnp.float32
    assert 0 <= images.min() and 0.9 < images.max() <= 1


def test_accuracy_of_a_model_that_always_says_three():
    task = mnist.mnist_task(no_model)
    three = jnp.zeros(10).at[3].set(1.0)
    scores = task.evaluate(
        lambda images: jnp.broadcast_to(three, (len(images), 10)), task.held_out
    )
    expected = (np.asarray(task.held_out.labels) == 3).mean()
    assert float(scores["accuracy"]) == pytest.approx(expected)
    broken = task.evaluate(
        lambda images: jnp.full((len(images), 10), jnp.nan), task.held_out
    )
    assert np.isnan(broken["accuracy"])


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(
        f">{values.ndim}I", *values.shape
    )
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def idx_files(tmp_path):
    """The four files, two of them gzipped, with the arrays they hold."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (6, 28, 28)),
        rng.integers(0, 10, 6),
        rng.integers(0, 256, (3, 28, 28)),
        rng.integers(0, 10, 3),
    ]
    for index, (name, values) in enumerate(zip(mnist.FILES, arrays, strict=True)):
        if index % 2:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (tmp_path / name).write_bytes(idx(values))
    return tmp_path, arrays


def test_idx_files_are_read_as_written(idx_files):
    directory, arrays = idx_files
    task = mnist.mnist_task(no_model, directory=directory)
    np.testing.assert_array_equal(task.train.images, arrays[0].reshape(6, 784))
    np.testing.assert_array_equal(task.train.labels, arrays[1])
    np.testing.assert_array_equal(task.held_out.images, arrays[2].reshape(3, 784))
    np.testing.assert_array_equal(task.held_out.labels, arrays[3])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (mnist.FILES[0], None, "has no file"),
        (mnist.FILES[0], b"", "no IDX header"),
        (mnist.FILES[0], b"\0\0\x08\x03\0\0", "no IDX header"),
        (mnist.FILES[0], idx(np.zeros((6, 28, 28)))[:-1], "promises shape"),
        (mnist.FILES[0], idx(np.zeros((6, 20, 28))), "(6, 20, 28)"),
        (mnist.FILES[0], idx(np.zeros((0, 28, 28))), "at least one image"),
        (mnist.FILES[1], idx(np.zeros(5)), "6 labels"),
        (mnist.FILES[1], idx(np.full(6, 10)), "up to 10"),
        (mnist.FILES[0], b"\0\0\x08\x41" + b"\0\0\0\1" * 65 + b"\1", "65 dimensions"),
        (mnist.FILES[0], b"\0\0\x08\x03" + b"\xff" * 12, "256 MiB"),
        (mnist.FILES[1] + ".gz", b"not gzip", "cannot read"),
        (
            mnist.FILES[1] + ".gz",
            gzip.compress(idx(np.zeros(6)), mtime=0)[:-9],
            "cannot read",
        ),
    ],
)
def test_malformed_digits_are_refused_by_name(idx_files, name, content, reason):
    directory, _ = idx_files
    for path in directory.glob(name.removesuffix(".gz") + "*"):
        path.unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        mnist.mnist_task(no_model, directory=directory)
    assert reason in str(caught.value)
    assert name in str(caught.value)
    assert "accepted" in str(caught.value)


def test_a_gzip_bomb_is_not_decompressed(tmp_path):
    """A file of 60 kB that promises one byte and holds 64 million."""
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(1)) + bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"holds more bytes .* shape \(1,\)"):
        mnist.read_idx(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_a_text_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(text, "LARGEST", 2**20)
    with pytest.raises(ValueError, match="'/dev/zero' is larger than 1 MiB"):
        text.read_text(pathlib.Path("/dev/zero"))
