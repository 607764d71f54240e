"""The analysis of exploration spaces: a document of tables and plots."""

from rankfold.reporting.exploration import content as content
from rankfold.reporting.exploration.record import Analysis as Analysis
from rankfold.reporting.exploration.record import Average as Average
from rankfold.reporting.exploration.record import LayerSpaces as LayerSpaces
