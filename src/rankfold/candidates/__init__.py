"""Candidates of each layer, by method and ranks, with cost, error and predicted loss."""

from rankfold.candidates.estimator import Estimator as Estimator
from rankfold.candidates.forecast import Forecast as Forecast
from rankfold.candidates.latency import without_slower as without_slower
from rankfold.candidates.narrow import NarrowPlan as NarrowPlan
from rankfold.candidates.proxies import ProxyConfig as ProxyConfig
from rankfold.candidates.ram import within_ram as within_ram
from rankfold.candidates.table import DEFAULT_METHODS as DEFAULT_METHODS
from rankfold.candidates.table import DEFAULT_PAIR as DEFAULT_PAIR
from rankfold.candidates.table import DEFAULT_TRAIN as DEFAULT_TRAIN
from rankfold.candidates.table import TableConfig as TableConfig
from rankfold.candidates.table import build_table as build_table
from rankfold.candidates.table import resolve_methods as resolve_methods
