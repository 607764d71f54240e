"""What can be found wrong with a call before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rankfold import strategies
from rankfold._config import is_integer, require
from rankfold.batches import MatchedBatches
from rankfold.candidates import TableConfig, resolve_methods
from rankfold.errors import BudgetError, ModelError
from rankfold.methods import get as get_method
from rankfold.records import ACCURACY, Budget, Inventory, counted_in_part
from rankfold.records.deploy import check_deploy_dtype

BudgetLike = str | Mapping[str, float | str] | Sequence[str] | Budget


def check_options(
    *,
    budget: BudgetLike | None,
    strategy: str,
    config: Mapping[str, Any] | None,
    methods: str | Sequence[str] | None,
    method_options: Mapping[str, Mapping[str, Any]] | None,
    overrides: Mapping[str, Any] | None,
    rank_multiple: int | None,
    gauge: bool,
    storage: str | None,
    seed: int,
) -> None:
    """Raise for every option of `plan` that is wrong whatever the model: before any work is done."""
    strategies.get(strategy, config)
    if budget is not None:
        check_measurable(Budget.parse(budget))
    multiple = 1 if rank_multiple is None else rank_multiple
    options = {} if method_options is None else method_options
    table = TableConfig(methods=resolve_methods(methods), options=options, rank_multiple=multiple)
    require(isinstance(gauge, bool), "gauge", gauge, "true or false")
    check_deploy_dtype(storage)
    for name in table.options:
        get_method(name, table.options[name])
    require(overrides is None or isinstance(overrides, Mapping), "overrides", overrides, "a mapping of layer names")
    require(is_integer(seed) and seed >= 0, "seed", seed, "an integer of at least 0")


def check_measurable(budget: Budget) -> None:
    """Raise `BudgetError` if a bound can only be kept by measuring the model, which a plan alone does not."""
    if budget.get(ACCURACY):
        raise BudgetError(
            f"budget {str(budget)!r} bounds {ACCURACY}, which only a measured metric can tell. Use compress with "
            "evaluate=..., or bound params, macs, flash, ram, fm or memory."
        )


def check_compressible(inventory: Inventory) -> None:
    """Raise `ModelError` if there is nothing to compress, saying why."""
    if inventory.compressible:
        return
    reasons = "".join(f"\n  {layer.name!r} ({layer.describe()}): {layer.skip}" for layer in inventory.layers[:8])
    more = len(inventory.layers) - 8
    raise ModelError(
        "the model has no layer that can be compressed: it needs a convolution or linear layer that is not excluded."
        + (reasons + (f"\n  ... and {more} more" if more > 0 else "") if reasons else " It has neither.")
        + "".join(f"\n  {holder}" for holder in inventory.holders[:3] if not reasons)
    )


def check_counted(inventory: Inventory, *budgets: Budget | None) -> None:
    """Raise `BudgetError` if a bound is on MACs, and those of the model are known in part only."""
    bounded = next((budget for budget in budgets if budget is not None and budget.get("macs")), None)
    if bounded is None or not inventory.uncounted:
        return
    own = all(name.partition("::")[0] not in ("aten", name) for name in inventory.uncounted)
    raise BudgetError(
        f"budget {str(bounded)!r} bounds macs, but the model's {counted_in_part(inventory.uncounted)}. "
        "Bound params, flash, ram, fm or memory instead"
        + (", or register a formula with torch.utils.flop_counter.register_flop_formula." if own else ".")
    )


def reusable(batches: Iterable[Any] | None, example_input: Any = None) -> Iterable[Any] | None:
    """Return data that can be gone through more than once: an iterator's items, anything else as it is.

    With an example input every batch is held against it (`rankfold.batches.MatchedBatches`).
    """
    if batches is None:
        return None
    again = list(batches) if isinstance(batches, Iterator) else batches
    return again if example_input is None else MatchedBatches(again, example_input, "calibration")
