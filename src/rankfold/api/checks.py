"""What can be found wrong with a call before any work is done."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rankfold._config import spelled
from rankfold.errors import BudgetError, ModelError
from rankfold.records import ACCURACY, Budget, Inventory, not_counted, resource_names
from rankfold.records.amounts import either

BudgetLike = str | Mapping[str, float | str] | Sequence[str] | Budget


def check_measurable(budget: Budget | None, handled: Collection[str] = ()) -> None:
    """Raise `BudgetError` if a bound can only be kept by measuring the model, unless the strategy does."""
    if budget is not None and budget.get(ACCURACY) and ACCURACY not in handled:
        raise BudgetError(
            f"budget {str(budget)!r} bounds {ACCURACY}, which can only be checked by measuring a metric. Use compress "
            f"with {spelled('evaluate', ...)}, or bound {either(resource_names('additive', 'peak'))}."
        )


def check_compressible(inventory: Inventory) -> None:
    """Raise `ModelError` if there is nothing to compress, saying why."""
    if inventory.compressible:
        return
    reasons = "".join(f"\n  {layer.name!r} ({layer.describe()}): {layer.skip}" for layer in inventory.layers[:8])
    more = len(inventory.layers) - 8
    raise ModelError(
        "the model has no layer that can be compressed: "
        + (
            "every convolution and linear layer is excluded or not supported."
            if reasons
            else "it contains no convolution or linear layer."
        )
        + (reasons + (f"\n  ... and {more} more" if more > 0 else ""))
        + "".join(f"\n  {holder}" for holder in inventory.holders[:3] if not reasons)
    )


def check_counted(inventory: Inventory, *budgets: Budget | None) -> None:
    """Raise `BudgetError` if a bound is on MACs, and those of the model are known in part only."""
    bounded = next((budget for budget in budgets if budget is not None and budget.get("macs")), None)
    if bounded is None or not inventory.uncounted:
        return
    others = [name for name in resource_names("additive", "peak") if name != "macs"]
    own = all(name.partition("::")[0] not in ("aten", name) for name in inventory.uncounted)
    raise BudgetError(
        f"budget {str(bounded)!r} bounds macs, but some operations of the model have no formula for them "
        f"({not_counted(inventory.uncounted)}). Bound {either(others)} instead"
        + (", or register a formula with torch.utils.flop_counter.register_flop_formula." if own else ".")
    )
