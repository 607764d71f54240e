"""Change models: build blueprints, replace modules, strip factored layers."""

from rankfold.inventory.copying import copy_model as copy_model
from rankfold.surgery.apply import apply_plan_ as apply_plan_
from rankfold.surgery.apply import check_plan as check_plan
from rankfold.surgery.apply import factored_layers as factored_layers
from rankfold.surgery.apply import plan_of as plan_of
from rankfold.surgery.factored import Factored as Factored
from rankfold.surgery.factored import FactoredLinear as FactoredLinear
from rankfold.surgery.factored import build as build
from rankfold.surgery.lossless import gauge as gauge
from rankfold.surgery.proof import Proof as Proof
from rankfold.surgery.strip import strip as strip
