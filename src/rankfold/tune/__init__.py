"""Training and fine-tuning: losses, the training loop on Accelerate, resumable checkpoints."""

from rankfold.tune.config import FineTune as FineTune
from rankfold.tune.layers import LayerDistillation as LayerDistillation
from rankfold.tune.loop import finetune as finetune
from rankfold.tune.loop import finetune_ as finetune_
from rankfold.tune.losses import Distill as Distill
from rankfold.tune.losses import Task as Task
from rankfold.tune.optimizers import rebuild_optimizer as rebuild_optimizer
from rankfold.tune.recipes import FROM_SCRATCH as FROM_SCRATCH
from rankfold.tune.recipes import LAYERWISE as LAYERWISE
from rankfold.tune.recipes import NORTON as NORTON
from rankfold.tune.recipes import RECIPES as RECIPES
from rankfold.tune.recipes import Recipe as Recipe
from rankfold.tune.result import Epoch as Epoch
from rankfold.tune.result import StepInfo as StepInfo
from rankfold.tune.result import TuneResult as TuneResult
from rankfold.tune.terms import Step as Step
from rankfold.tune.terms import Term as Term
from rankfold.tune.terms import terms as terms
