"""The calls that are drawn and counted for each recipe, and what is put into them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax

import clipjax

NAMES = {"clipjax": clipjax, "jnp": jnp, "optax": optax}
PER_SHARD = 'axis_name="data"'


@dataclasses.dataclass(frozen=True)
class Scene:
    """How a recipe is called, and how its figures are drawn.

    Attributes:
        plain: the call whose cost is counted, with the recipe's defaults where it has
            any.
        drawn: the call of the figures; empty for the plain one.
        sharded: the call inside of shard_map; empty where it cannot be split.
        kind: what is put in: ``norm``, ``entry``, ``leaf`` of four equal entries,
            ``outlier`` among usual entries, or ``matrix``.
        what: what is measured, for the axes.
        path: whether the threshold changes from step to step.
        params: the norm of the parameters, and its factor of growth over the stream.
        as_reported: whether to draw the norms of the report, and not the updates: the
            clip is in front of an optimizer, or measures something else.
        limits: whether to draw the threshold beside what comes out.
    """

    plain: str
    drawn: str = ""
    sharded: str = ""
    kind: str = "norm"
    what: str = "norm"
    path: bool = False
    params: tuple[float, float] = (1.0, 1.0)
    as_reported: bool = False
    limits: bool = True


def make(call: str) -> Any:
    """Return the clip of a call."""
    return eval(f"clipjax.{call}", dict(NAMES))


def with_axis(call: str) -> str:
    """Add the mesh axis to a call."""
    return f"{call[:-1]}{'' if call.endswith('()') else ', '}{PER_SHARD})"


def scene(plain: str, *, sharded: str | None = None, **settings: Any) -> Scene:
    """Return a scene whose sharded call is the plain one with a mesh axis."""
    return Scene(
        plain, sharded=with_axis(plain) if sharded is None else sharded, **settings
    )


GROUPS = 'clip_by_group_norm(lambda path, leaf: "all", {"all": 1.0})'

ENTRY: dict[str, Any] = {"kind": "entry", "what": "entry", "limits": False}

SCENES = {
    "clip_by_global_norm": scene("clip_by_global_norm(1.0)"),
    "clip_by_leaf_norm": scene("clip_by_leaf_norm(1.0)"),
    "clip_by_group_norm": scene(GROUPS),
    "delta_clip": scene("delta_clip(1.0)", drawn="delta_clip(1.0, delta=0.1)"),
    "torch_clip_grad_norm": scene("torch_clip_grad_norm(1.0)"),
    "clip_by_block_rms": scene("clip_by_block_rms(1.0)", kind="leaf", what="RMS"),
    "soft_clip_by_global_norm": scene("soft_clip_by_global_norm(1.0)"),
    "normalise_by_global_norm": scene("normalise_by_global_norm()"),
    "scale_by_l0_l1": scene("scale_by_l0_l1(l0=2.0, l1=1.0)", limits=False),
    "zclip": scene("zclip()", drawn="zclip(max_grad_norm=None)", path=True),
    "quantile_clip": scene(
        "quantile_clip()",
        drawn="quantile_clip(window=100, minimum_history=20)",
        path=True,
    ),
    "autoclip": scene("autoclip()", path=True),
    "clip_update_by_history": scene("clip_update_by_history()", path=True),
    "norm_growth_limiter": scene("norm_growth_limiter()", path=True),
    "adagc": scene("adagc()", path=True),
    "aggc": scene("aggc()", path=True),
    "gradient_stabilizer": scene("gradient_stabilizer()", path=True),
    "adaptive_grad_clip": scene(
        "adaptive_grad_clip(0.1)",
        sharded=f"adaptive_grad_clip(0.1, axis=0, {PER_SHARD})",
        path=True,
        params=(10.0, 2.0),
    ),
    "larc_clip": scene("larc_clip(learning_rate=0.1)", path=True, params=(5.0, 2.0)),
    "clippy": scene(
        "clippy()", what="largest change / allowed change", as_reported=True
    ),
    "clip_by_value": scene("clip_by_value(1.0)", **ENTRY),
    "cclip": scene("cclip()", **ENTRY),
    "two_sided_clip": scene(
        "two_sided_clip()",
        drawn="two_sided_clip(lower=0.3, upper=1.0)",
        **ENTRY,
    ),
    "quantization_clip": scene(
        "quantization_clip(jnp.int8)", kind="outlier", what="largest entry"
    ),
    "spectral_clip": scene(
        "spectral_clip(1.0)", sharded="", kind="matrix", what="singular value"
    ),
    "spectral_clamp": scene(
        "spectral_clamp(1.0)", sharded="", kind="matrix", what="singular value"
    ),
    "spectral_soft_clip": scene(
        "spectral_soft_clip(1.0)", sharded="", kind="matrix", what="singular value"
    ),
    "stable_update_clip": scene(
        "stable_update_clip()", what="RMS of g/√v", path=True, as_reported=True
    ),
    "clip_by_momentum": scene("clip_by_momentum(10.0)", path=True, as_reported=True),
    "spam_clip": scene("spam_clip()", what="entry", path=True, as_reported=True),
    "stable_spam_clip": scene("stable_spam_clip()", path=True),
    "acclip": scene(
        "acclip()", what="entry of the momentum", path=True, as_reported=True
    ),
}
