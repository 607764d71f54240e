"""The sweep over budgets: a document that charts the Pareto front and is also written as CSV."""

from rankfold.reporting.sweep import content as content
from rankfold.reporting.sweep.record import Sweep as Sweep
from rankfold.reporting.sweep.record import SweepPoint as SweepPoint
