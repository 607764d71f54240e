"""What could be done with each layer: method x ranks, with cost and error."""

from rankfold.candidates.table import DEFAULT_METHODS as DEFAULT_METHODS
from rankfold.candidates.table import TableConfig as TableConfig
from rankfold.candidates.table import build_table as build_table
from rankfold.candidates.table import resolve_methods as resolve_methods
