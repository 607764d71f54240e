"""Costs of blueprints, computed from shapes alone."""

from rankfold.cost.count import blueprint_cost as blueprint_cost
from rankfold.cost.count import gauged_cost as gauged_cost
from rankfold.cost.liveness import activation_profile as activation_profile
from rankfold.cost.pricing import LayerTimes as LayerTimes
from rankfold.cost.pricing import Pricing as Pricing
from rankfold.cost.ram import layer_ram as layer_ram
