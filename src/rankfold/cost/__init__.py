"""Costs of blueprints, counted without building them."""

from rankfold.cost.count import blueprint_cost as blueprint_cost
from rankfold.cost.count import gauged_cost as gauged_cost
from rankfold.cost.flash import stored_inventory as stored_inventory
from rankfold.cost.liveness import activation_profile as activation_profile
from rankfold.cost.ram import layer_ram as layer_ram
