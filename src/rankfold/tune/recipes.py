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

NORTON = FineTune(
    epochs=400, loss="task", lr=0.05, weight_decay=5e-4, warmup=5 / 400, max_grad_norm=None, keep="best",
)  # fmt: skip
"""Recipe of NORTON (Pham, Zniyed & Nguyen 2025) for pruned and factored networks, with batches of 256.

SGD with momentum 0.9 (here Nesterov's), 5 epochs of warm-up, then a cosine, as in the authors' public code. The authors
keep the checkpoint that is best on the test set. ``keep="best"`` follows the metric that you pass: measure it on
held-out training images. Add the data with ``dataclasses.replace(NORTON, data=loader)``.
"""
