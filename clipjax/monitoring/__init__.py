"""Recording of clip metrics: histories, files, TensorBoard, W&B, lines for a log."""

from .display import progress as progress
from .history import History as History
from .recorder import Recorder as Recorder
from .summary import log_line as log_line
from .tensors import momentum_of as momentum_of
from .tensors import tensor_report as tensor_report
from .writers import JsonlWriter as JsonlWriter
from .writers import TensorBoardWriter as TensorBoardWriter
from .writers import WandbWriter as WandbWriter
from .writers import Writer as Writer
