"""Rank-selection strategies, one file each; importing the package registers all of them."""

from rankfold.strategies.compressnas import CompressNAS as CompressNAS
from rankfold.strategies.contract import Need as Need
from rankfold.strategies.contract import Strategy as Strategy
from rankfold.strategies.contract import check_needs as check_needs
from rankfold.strategies.contract import get as get
from rankfold.strategies.contract import need_text as need_text
from rankfold.strategies.contract import registry as registry
from rankfold.strategies.energy import Energy as Energy
from rankfold.strategies.manual import Manual as Manual
from rankfold.strategies.norton import Norton as Norton
from rankfold.strategies.problem import Problem as Problem
from rankfold.strategies.prune import Prune as Prune
from rankfold.strategies.rene import RENE as RENE
from rankfold.strategies.similarity import Similarity as Similarity
from rankfold.strategies.uniform import Uniform as Uniform
from rankfold.strategies.vbmf import VBMF as VBMF
from rankfold.strategies.workbench import Batch as Batch
from rankfold.strategies.workbench import Handle as Handle
from rankfold.strategies.workbench import Workbench as Workbench
