"""Convolutional encoder and decoder, with and without skips between them."""

import jax
import jax.numpy as jnp
from flax import nnx


class EncoderDecoder(nnx.Module):
    """`depth` convolutions down and as many up, the last one without a ReLU.

    The first convolution of each part of the encoder halves height and width, except
    in the first part; the decoder mirrors it. With skips a decoder layer sees its
    input and, concatenated, the result of the encoder layer of the same level, as in
    a U-Net.

    Args:
        inputs: channels of the images.
        outputs: channels of the result.
        width: channels of the inner layers.
        depth: convolutions of the encoder, and of the decoder.
        parts: resolutions, each half of the one before; divides `depth`.
        kernel: height and width of each kernel.
        skips: whether encoder layers are concatenated to the decoder's input.
        scale: variance of the initial weights times the fan-in; 2 is He's.
        rngs: where the initial weights come from.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 32,
        depth: int = 6,
        parts: int = 3,
        kernel: int = 3,
        skips: bool = True,
        scale: float = 2.0,
        rngs: nnx.Rngs,
    ):
        """Initialize the weights."""
        init = nnx.initializers.variance_scaling(scale, "fan_in", "normal")

        def convolution(before: int, after: int, size: int, stride: int) -> nnx.Conv:
            return nnx.Conv(
                before, after, (size, size), stride, kernel_init=init, rngs=rngs
            )

        self.skips = skips
        per_part = depth // parts
        self.strides = tuple(
            2 if level and level % per_part == 0 else 1 for level in range(depth)
        )
        widths = [inputs, *[width] * depth]
        self.encoder = nnx.List(
            convolution(before, width, kernel, stride)
            for before, stride in zip(widths, self.strides, strict=False)
        )
        self.decoder = nnx.List(
            convolution(2 * width if skips else width, after, kernel, 1)
            for after in [*[width] * (depth - 1), outputs]
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map `(batch, height, width, inputs)` to as many pixels of `outputs`.

        Height and width must be multiples of `2 ** (parts - 1)`.
        """
        hidden, levels = images, []
        for layer in self.encoder:
            hidden = jax.nn.relu(layer(hidden))
            levels.append(hidden)
        for layer, stride in zip(self.decoder, self.strides[::-1], strict=True):
            if self.skips:
                hidden = jnp.concatenate([hidden, levels.pop()], axis=-1)
            # Back to the resolution that the encoder layer of this level got.
            hidden = hidden.repeat(stride, axis=1).repeat(stride, axis=2)
            hidden = layer(hidden)
            if layer is not self.decoder[-1]:
                hidden = jax.nn.relu(hidden)
        return hidden
