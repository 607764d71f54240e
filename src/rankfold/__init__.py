"""rankfold: replace a trained network's layers with low-rank factors, method and ranks chosen layer by layer.

>>> import torch, rankfold as rf
>>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
>>> result = rf.compress(net, torch.randn(1, 32), budget="params<=50%")
>>> result.report.after.params <= result.report.before.params // 2
True
"""

from rankfold import zoo as zoo
from rankfold._version import __version__ as __version__
from rankfold.api import Result as Result
from rankfold.api import Search as Search
from rankfold.api import analyze as analyze
from rankfold.api import apply as apply
from rankfold.api import apply_ as apply_
from rankfold.api import compress as compress
from rankfold.api import factorize as factorize
from rankfold.api import plan as plan
from rankfold.api import realize as realize
from rankfold.api import sweep as sweep
from rankfold.calibration import Sequential as Sequential
from rankfold.errors import RankfoldError as RankfoldError
from rankfold.evaluation import agreement as agreement
from rankfold.evaluation import compare_latency as compare_latency
from rankfold.evaluation import evaluate as evaluate
from rankfold.evaluation import top1 as top1
from rankfold.inventory import inspect as inspect
from rankfold.methods import CP as CP
from rankfold.methods import QR as QR
from rankfold.methods import SVD as SVD
from rankfold.methods import TT as TT
from rankfold.methods import TT3 as TT3
from rankfold.methods import TTM as TTM
from rankfold.methods import FilterwiseCP as FilterwiseCP
from rankfold.methods import SpatialSVD as SpatialSVD
from rankfold.methods import Tucker as Tucker
from rankfold.records import Budget as Budget
from rankfold.records import Plan as Plan
from rankfold.reporting import Report as Report
from rankfold.storage import load as load
from rankfold.storage import save as save
from rankfold.strategies import VBMF as VBMF
from rankfold.strategies import CompressNAS as CompressNAS
from rankfold.strategies import Energy as Energy
from rankfold.strategies import Manual as Manual
from rankfold.strategies import Uniform as Uniform
from rankfold.surgery import gauge as gauge
from rankfold.surgery import strip as strip
from rankfold.tune import FineTune as FineTune
from rankfold.tune import finetune as finetune
from rankfold.tune import finetune_ as finetune_

__all__ = [
    "CP",
    "QR",
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
    "Plan",
    "RankfoldError",
    "Report",
    "Result",
    "Search",
    "Sequential",
    "SpatialSVD",
    "Tucker",
    "Uniform",
    "agreement",
    "analyze",
    "apply",
    "apply_",
    "compare_latency",
    "compress",
    "evaluate",
    "factorize",
    "finetune",
    "finetune_",
    "gauge",
    "inspect",
    "load",
    "plan",
    "realize",
    "save",
    "strip",
    "sweep",
    "top1",
    "zoo",
]
