"""Reports and other documents, whose sections the terminal, Markdown and HTML render."""

from rankfold.reporting.build import build_report as build_report
from rankfold.reporting.build import with_latency as with_latency
from rankfold.reporting.build import with_peak_ram as with_peak_ram
from rankfold.reporting.build import with_widths as with_widths
from rankfold.reporting.layers import inventory_markdown as inventory_markdown
from rankfold.reporting.record import BoundRow as BoundRow
from rankfold.reporting.record import EpochRow as EpochRow
from rankfold.reporting.record import LayerRow as LayerRow
from rankfold.reporting.record import MetricValue as MetricValue
from rankfold.reporting.record import RoundRow as RoundRow
from rankfold.reporting.report import Report as Report
from rankfold.reporting.summary import provenance_rows as provenance_rows
