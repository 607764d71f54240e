"""Recipes of papers."""

from rankfold.tune.config import FineTune
from rankfold.tune.layers import LayerDistillation as LayerDistillation  # recipes name the terms that these register
from rankfold.tune.losses import Task as Task

FROM_SCRATCH = FineTune(epochs=100, optimizer="adam", schedule="plateau", warmup=0, max_grad_norm=None)
"""Recipe for random weights, that of the similarity paper (Kokhazadeh et al. 2025, section 6) with batches of 32.

Add the data with ``dataclasses.replace(FROM_SCRATCH, data=loader)``.
"""

LAYERWISE = FineTune(
    epochs=20, loss="task+layer", layer_weight=0.5, layer_scale="mean", lr=1e-5, weight_decay=0.0, warmup=0,
    max_grad_norm=None,
)  # fmt: skip
"""Recipe of RENE (Aghababaei-Harandi & Amini 2024, section 4.4, eq. 10 and 11) for compressed models.

Labels, and each factored layer's weight and output near the original's. The squared norms of eq. 10 are means over
elements, as in the authors' code; ``layer_scale="sum"`` is the formula as printed. Add the data with
``dataclasses.replace(LAYERWISE, data=loader)``.
"""
