"""The exploration space of Kokhazadeh et al. (2025), section 4."""

from rankfold.cost.exploration.record import Extent as Extent
from rankfold.cost.exploration.record import Histogram as Histogram
from rankfold.cost.exploration.record import Solution as Solution
from rankfold.cost.exploration.record import Space as Space
from rankfold.cost.exploration.record import Step as Step
from rankfold.cost.exploration.scores import METRICS as METRICS
from rankfold.cost.exploration.scores import scores as scores
from rankfold.cost.exploration.space import CORES as CORES
from rankfold.cost.exploration.space import PAPER_STEPS as PAPER_STEPS
from rankfold.cost.exploration.space import Exploration as Exploration
from rankfold.cost.exploration.space import explore as explore
from rankfold.cost.exploration.written import layer_of as layer_of
