"""The contract that every method and strategy meets, as checks that anyone can run over their own."""

from rankfold.testing.cases import LayerCase as LayerCase
from rankfold.testing.cases import layer_zoo as layer_zoo
from rankfold.testing.methods import check_method as check_method
from rankfold.testing.methods import method_checks as method_checks
