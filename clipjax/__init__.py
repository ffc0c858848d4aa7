"""Gradient clipping for JAX: published ways to clip, as Optax transformations."""

from . import diagnostics as diagnostics
from . import granularity as granularity
from . import guards as guards
from . import monitoring as monitoring
from . import norms as norms
from . import privacy as privacy
from . import recipes as recipes
from . import rules as rules
from . import spectral as spectral
from . import thresholds as thresholds
from .core.clip import Clip as Clip
from .core.clip import clip_by as clip_by
from .core.entries import clip_entries as clip_entries
from .core.state import ClipInfo as ClipInfo
from .core.state import ClipState as ClipState
from .cotangent import clip_cotangent as clip_cotangent
from .diagnostics.geometry import direction_cosine as direction_cosine
from .diagnostics.geometry import leaf_norms as leaf_norms
from .diagnostics.quantization import QuantizationReport as QuantizationReport
from .diagnostics.quantization import quantization_report as quantization_report
from .metrics import metrics as metrics
from .metrics import nonfinite_path as nonfinite_path
from .per_example import AuxiliaryOutput as AuxiliaryOutput
from .per_example import ClippedGrad as ClippedGrad
from .per_example import clipped_grad as clipped_grad
from .per_example import per_example_grad_norms as per_example_grad_norms
from .projection import project_onto_ball as project_onto_ball
from .recipes import acclip as acclip
from .recipes import adagc as adagc
from .recipes import adaptive_grad_clip as adaptive_grad_clip
from .recipes import aggc as aggc
from .recipes import autoclip as autoclip
from .recipes import cclip as cclip
from .recipes import clip_by_block_rms as clip_by_block_rms
from .recipes import clip_by_global_norm as clip_by_global_norm
from .recipes import clip_by_group_norm as clip_by_group_norm
from .recipes import clip_by_leaf_norm as clip_by_leaf_norm
from .recipes import clip_by_momentum as clip_by_momentum
from .recipes import clip_by_value as clip_by_value
from .recipes import clip_update_by_history as clip_update_by_history
from .recipes import clippy as clippy
from .recipes import delta_clip as delta_clip
from .recipes import gradient_stabilizer as gradient_stabilizer
from .recipes import larc_clip as larc_clip
from .recipes import norm_growth_limiter as norm_growth_limiter
from .recipes import normalise_by_global_norm as normalise_by_global_norm
from .recipes import quantile_clip as quantile_clip
from .recipes import quantization_clip as quantization_clip
from .recipes import scale_by_l0_l1 as scale_by_l0_l1
from .recipes import soft_clip_by_global_norm as soft_clip_by_global_norm
from .recipes import spam_clip as spam_clip
from .recipes import spectral_clamp as spectral_clamp
from .recipes import spectral_clip as spectral_clip
from .recipes import spectral_soft_clip as spectral_soft_clip
from .recipes import stable_spam_clip as stable_spam_clip
from .recipes import stable_update_clip as stable_update_clip
from .recipes import torch_clip_grad_norm as torch_clip_grad_norm
from .recipes import two_sided_clip as two_sided_clip
from .recipes import zclip as zclip
from .spectral import clip_singular_values as clip_singular_values
from .wrappers.error import raise_on_nonfinite as raise_on_nonfinite
from .wrappers.feedback import error_feedback as error_feedback
from .wrappers.per_worker import per_worker as per_worker
from .wrappers.reset import periodic_reset as periodic_reset
from .wrappers.skip import skip_nonfinite as skip_nonfinite
from .wrappers.skipped import SkippedStep as SkippedStep
from .wrappers.skipped import skipped_steps as skipped_steps
from .wrappers.spike import skip_on_spike as skip_on_spike
from .wrappers.unscale import unscale as unscale

__version__ = "0.2.0"

normalize_by_global_norm = normalise_by_global_norm  # Optax's spelling

# Python makes a submodule an attribute of its package once anything imports it.
_INTERNAL = (
    "core",
    "cotangent",
    "demos",
    "jax_internals",
    "per_example",
    "projection",
    "wrappers",
)


def __dir__() -> list[str]:
    """Return the public names, for completion after ``clipjax.``."""
    is_private = lambda name: name.startswith("_") and not name.endswith("__")  # noqa: E731
    return sorted(
        name for name in globals() if name not in _INTERNAL and not is_private(name)
    )
