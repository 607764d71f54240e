"""Evaluation of models: metrics, agreement with the original, latency."""

from rankfold.evaluation.evaluate import Metric as Metric
from rankfold.evaluation.evaluate import as_metric as as_metric
from rankfold.evaluation.evaluate import evaluate as evaluate
from rankfold.evaluation.latency import LatencyResult as LatencyResult
from rankfold.evaluation.latency import compare_latency as compare_latency
from rankfold.evaluation.latency import latency as latency
from rankfold.evaluation.metrics import agreement as agreement
from rankfold.evaluation.metrics import output_error as output_error
from rankfold.evaluation.metrics import top1 as top1
from rankfold.evaluation.metrics import topk as topk
