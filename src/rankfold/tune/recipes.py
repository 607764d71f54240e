"""Recipes of papers."""

from dataclasses import dataclass

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
keep the checkpoint that is best on the test set. Here, ``validate`` should be a metric on held-out training images,
such as ``rf.top1(zoo.data(..., split="held_out", hold_out=5000))``. Add the data with
``dataclasses.replace(NORTON, data=loader, validate=metric)``.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe by name: its configuration, without data, and the batch size of the paper (None if it gives none)."""

    config: FineTune
    batch_size: int | None


RECIPES = {
    "from-scratch": Recipe(config=FROM_SCRATCH, batch_size=32),
    "layerwise": Recipe(config=LAYERWISE, batch_size=None),
    "norton": Recipe(config=NORTON, batch_size=256),
}
"""Recipes by name, which ``--recipe`` takes."""
