"""rankfold: replace a trained network's layers with low-rank factors, with the method and ranks chosen per layer.

>>> import torch, rankfold as rf
>>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
>>> result = rf.compress(net, torch.randn(1, 32), budget="params<=50%")
>>> result.report.after.params <= result.report.before.params // 2
True
"""

from rankfold import zoo
from rankfold._version import __version__ as __version__
from rankfold.api import (
    Result,
    Search,
    analyze,
    apply,
    apply_,
    compress,
    export,
    factorize,
    gradcam,
    load_pretrained,
    plan,
    realize,
    sweep,
)
from rankfold.calibration import Sequential
from rankfold.errors import RankfoldError
from rankfold.evaluation import agreement, compare_latency, evaluate, top1
from rankfold.inventory import inspect
from rankfold.methods import CP, QR, SVD, TT, TT3, TTM, FilterwiseCP, SpatialSVD, Tucker
from rankfold.pruning import channel_groups
from rankfold.records import Budget, Plan
from rankfold.reporting import Report
from rankfold.storage import load, save
from rankfold.strategies import RENE, VBMF, CompressNAS, Energy, Manual, Norton, Prune, Similarity, Uniform
from rankfold.surgery import gauge, strip
from rankfold.tune import FineTune, finetune, finetune_

__all__ = [
    "CP",
    "QR",
    "RENE",
    "SVD",
    "TT",
    "TT3",
    "TTM",
    "VBMF",
    "Budget",
    "CompressNAS",
    "Energy",
    "FilterwiseCP",
    "FineTune",
    "Manual",
    "Norton",
    "Plan",
    "Prune",
    "RankfoldError",
    "Report",
    "Result",
    "Search",
    "Sequential",
    "Similarity",
    "SpatialSVD",
    "Tucker",
    "Uniform",
    "agreement",
    "analyze",
    "apply",
    "apply_",
    "channel_groups",
    "compare_latency",
    "compress",
    "evaluate",
    "export",
    "factorize",
    "finetune",
    "finetune_",
    "gauge",
    "gradcam",
    "inspect",
    "load",
    "load_pretrained",
    "plan",
    "realize",
    "save",
    "strip",
    "sweep",
    "top1",
    "zoo",
]
