"""Recipes: published clips, each a name for a point on the engine's four axes."""

from .adaptive import adaptive_grad_clip as adaptive_grad_clip
from .classic import clip_by_block_rms as clip_by_block_rms
from .classic import clip_by_global_norm as clip_by_global_norm
from .classic import clip_by_group_norm as clip_by_group_norm
from .classic import clip_by_leaf_norm as clip_by_leaf_norm
from .classic import clip_by_value as clip_by_value
from .classic import torch_clip_grad_norm as torch_clip_grad_norm
from .smooth import normalise_by_global_norm as normalise_by_global_norm
from .smooth import scale_by_l0_l1 as scale_by_l0_l1
from .smooth import soft_clip_by_global_norm as soft_clip_by_global_norm
