"""How much two results may differ: one table, with the reasons."""

from __future__ import annotations

import torch

OUTPUT_TOLERANCE: dict[torch.dtype, float] = {
    # Factors are computed in float64. Rounding is about 1e-15; un-whitening multiplies it by the root's condition (<=
    # 1e3), and five stages add up.
    torch.float64: 1e-10,
    # Factors and the outputs of up to five stages are rounded to 24 bits (6e-8 each); a sum of a few hundred products
    # adds its square root. The project's promise is 1e-4.
    torch.float32: 1e-5,
    # 11 bits (5e-4) for each of five factors and five outputs.
    torch.float16: 1e-2,
    # 8 bits (4e-3) for each of five factors and five outputs.
    torch.bfloat16: 6e-2,
}
"""Relative Frobenius error of outputs and weights that should be equal, by data type of the layer."""

ERROR_SLACK = 1e-6
"""Absolute slack between predicted and achieved relative errors: predictions come from Gram matrices, whose eigenvalues
are known to 1e-16 of the largest one, so errors to its root, 1e-8, with sums over a few hundred of them."""
