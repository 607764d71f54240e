"""The contract that every method and strategy meets, as checks that anyone can run over their own."""

from rankfold.testing.cases import LAYER_ZOO as LAYER_ZOO
from rankfold.testing.cases import LayerCase as LayerCase
from rankfold.testing.criteria import check_criterion as check_criterion
from rankfold.testing.criteria import criterion_checks as criterion_checks
from rankfold.testing.methods import check_method as check_method
from rankfold.testing.methods import method_checks as method_checks
from rankfold.testing.problems import ModelCase as ModelCase
from rankfold.testing.problems import make_problem as make_problem
from rankfold.testing.problems import model_zoo as model_zoo
from rankfold.testing.strategies import check_strategy as check_strategy
from rankfold.testing.strategies import strategy_checks as strategy_checks
