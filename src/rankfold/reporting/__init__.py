"""One report record, shown in the terminal, as Markdown, JSON or one self-contained HTML file."""

from rankfold.reporting.build import build_report as build_report
from rankfold.reporting.inventory import inventory_markdown as inventory_markdown
from rankfold.reporting.inventory import inventory_table as inventory_table
from rankfold.reporting.plan import plan_table as plan_table
from rankfold.reporting.record import BoundRow as BoundRow
from rankfold.reporting.record import EpochRow as EpochRow
from rankfold.reporting.record import LayerRow as LayerRow
from rankfold.reporting.record import MetricValue as MetricValue
from rankfold.reporting.report import Report as Report
