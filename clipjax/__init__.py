"""Gradient clipping for JAX: every published way to clip, as Optax transformations."""

from . import granularity as granularity
from . import guards as guards
from . import norms as norms
from . import recipes as recipes
from . import rules as rules
from . import thresholds as thresholds
from .engine import clip_by as clip_by
from .metrics import direction_cosine as direction_cosine
from .metrics import leaf_norms as leaf_norms
from .metrics import metrics as metrics
from .metrics import nonfinite_path as nonfinite_path
from .projection import project_onto_ball as project_onto_ball
from .recipes import adaptive_grad_clip as adaptive_grad_clip
from .recipes import clip_by_block_rms as clip_by_block_rms
from .recipes import clip_by_global_norm as clip_by_global_norm
from .recipes import clip_by_group_norm as clip_by_group_norm
from .recipes import clip_by_leaf_norm as clip_by_leaf_norm
from .recipes import clip_by_value as clip_by_value
from .recipes import normalise_by_global_norm as normalise_by_global_norm
from .recipes import scale_by_l0_l1 as scale_by_l0_l1
from .recipes import soft_clip_by_global_norm as soft_clip_by_global_norm
from .recipes import torch_clip_grad_norm as torch_clip_grad_norm
from .report import ClipInfo as ClipInfo
from .report import ClipState as ClipState
from .skip import skip_nonfinite as skip_nonfinite
