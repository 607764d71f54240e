"""Exporters: write a model to the file of another runtime, one format per file."""

from rankfold.exporters import coreml as coreml
from rankfold.exporters import executorch as executorch
from rankfold.exporters import litert as litert
from rankfold.exporters import onnx as onnx
from rankfold.exporters import openvino as openvino
from rankfold.exporters import torch_export as torch_export
from rankfold.exporters.contract import Exported as Exported
from rankfold.exporters.contract import Exporter as Exporter
from rankfold.exporters.contract import Runner as Runner
from rankfold.exporters.contract import get as get
from rankfold.exporters.contract import of_path as of_path
from rankfold.exporters.contract import registry as registry
from rankfold.exporters.int8 import Int8 as Int8
from rankfold.exporters.program import captured as captured
from rankfold.exporters.program import recaptured as recaptured
from rankfold.exporters.program import several as several
