"""Times of models and layers on a target: a runtime, a device and settings."""

from rankfold.timing import onnx_runtime as onnx_runtime
from rankfold.timing import torch_runtime as torch_runtime
from rankfold.timing.alternating import Reading as Reading
from rankfold.timing.contract import Run as Run
from rankfold.timing.contract import Runtime as Runtime
from rankfold.timing.contract import registry as registry
from rankfold.timing.layers import LayerTable as LayerTable
from rankfold.timing.target import DEFAULT_RUNTIME as DEFAULT_RUNTIME
from rankfold.timing.target import Target as Target
from rankfold.timing.timer import Comparison as Comparison
from rankfold.timing.timer import Timer as Timer
