"""What wrappers take: any gradient transformation."""

from __future__ import annotations

from typing import Any

import optax


def as_transformation(
    argument: str, value: Any
) -> optax.GradientTransformationExtraArgs:
    """Takes a transformation, or what gives one, such as ``optax.MultiSteps``.

    Raises:
        TypeError: it is neither.
    """
    if hasattr(value, "gradient_transformation"):
        value = value.gradient_transformation()
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(f"{argument} must be a gradient transformation, got {value!r}")
    return optax.with_extra_args_support(value)
