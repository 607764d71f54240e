"""The sweep over budgets: a document with its front as a chart, also written as CSV."""

from rankfold.reporting.sweep import content as content
from rankfold.reporting.sweep.record import Sweep as Sweep
from rankfold.reporting.sweep.record import SweepPoint as SweepPoint
