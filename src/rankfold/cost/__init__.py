"""Costs of blueprints, counted without building them."""

from rankfold.cost.count import blueprint_cost as blueprint_cost
from rankfold.cost.count import gauged_cost as gauged_cost
