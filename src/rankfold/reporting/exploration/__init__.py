"""The analysis of exploration spaces: one record, as tables in the terminal, JSON, or an HTML page with plots."""

from rankfold.reporting.exploration.analysis import Analysis as Analysis
from rankfold.reporting.exploration.record import AnalysisRecord as AnalysisRecord
from rankfold.reporting.exploration.record import Average as Average
from rankfold.reporting.exploration.record import LayerSpaces as LayerSpaces
