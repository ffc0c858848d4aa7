from . import granularity as granularity
from . import guards as guards
from . import norms as norms
from . import rules as rules
from . import thresholds as thresholds
from .core.clip import clip_by as clip_by
from .core.entries import clip_entries as clip_entries
