"""List a model's layers, and run models without changing them."""

from rankfold.inventory.copying import Spare as Spare
from rankfold.inventory.copying import copy_model as copy_model
from rankfold.inventory.exported import export_graph as export_graph
from rankfold.inventory.operations import OperationCounter as OperationCounter
from rankfold.inventory.padding import Padding as Padding
from rankfold.inventory.running import call_example as call_example
from rankfold.inventory.running import evaluating as evaluating
from rankfold.inventory.running import example_failure as example_failure
from rankfold.inventory.running import fused_attention_off as fused_attention_off
from rankfold.inventory.running import measure as measure
from rankfold.inventory.running import model_inputs as model_inputs
from rankfold.inventory.running import run_batch as run_batch
from rankfold.inventory.running import undisturbed as undisturbed
from rankfold.inventory.running import without_gradients as without_gradients
from rankfold.inventory.state import KeptState as KeptState
from rankfold.inventory.state import holds_graph as holds_graph
from rankfold.inventory.static import check_model as check_model
from rankfold.inventory.static import static_inventory as static_inventory
from rankfold.inventory.survey import inspect as inspect
from rankfold.inventory.weights import find_layer as find_layer
from rankfold.inventory.weights import find_module as find_module
from rankfold.inventory.weights import layer_bias as layer_bias
from rankfold.inventory.weights import layer_weight as layer_weight
from rankfold.inventory.weights import stored_weight as stored_weight
