"""The sweep over budgets: one record, in the terminal, as Markdown, JSON, CSV, or an HTML page with the front."""

from rankfold.reporting.sweep.record import SweepPoint as SweepPoint
from rankfold.reporting.sweep.record import SweepRecord as SweepRecord
from rankfold.reporting.sweep.sweep import Sweep as Sweep
