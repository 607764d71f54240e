"""Costs of blueprints, counted without building them."""

from rankfold.cost.count import blueprint_cost as blueprint_cost
