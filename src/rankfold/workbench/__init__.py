"""The workbench of iterative strategies: applies plans; trains, measures and compares the models of one problem."""

from rankfold.workbench.bench import Bench as Bench
from rankfold.workbench.bench import CompressedModel as CompressedModel
from rankfold.workbench.bench import own_checkpoint as own_checkpoint
from rankfold.workbench.saved_loops import SavedLoops as SavedLoops
from rankfold.workbench.saved_loops import SearchIdentity as SearchIdentity
