"""The contract of methods: every check on every method and every layer of the zoo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from rankfold import methods
from rankfold.methods import Method
from rankfold.testing import accuracy, costs, exactness, modules, refusals
from rankfold.testing.cases import LAYER_ZOO, LayerCase
from rankfold.testing.gauge import GaugedMethod, can_be_gauged, gauge_changes_only_the_numbers
from rankfold.testing.subject import layer_info, run_all

Check = Callable[[Method, LayerCase], None]

EVERY_LAYER: tuple[Check, ...] = (
    exactness.full_rank_is_exact,
    exactness.weight_is_what_forward_computes,
    exactness.output_looks_the_same,
    exactness.factors_fill_the_blueprint,
    exactness.special_weights_work,
    exactness.same_bits_twice,
    costs.cost_is_the_modules,
    costs.grid_is_valid,
    accuracy.error_never_grows_with_a_rank,
    accuracy.prediction_is_kept,
    accuracy.moments_change_only_the_metric,
    accuracy.scale_does_not_matter,
    modules.gradients_reach_every_factor,
    modules.merged_layers_compute_the_same,
    modules.weight_is_differentiable,
    modules.no_dense_weight_in_forward,
    modules.state_dict_round_trip,
    modules.copies_and_pickles,
    refusals.bad_ranks_are_refused,
    refusals.broken_weights_are_refused,
)
"""Checks for each layer that a method supports."""

GAUGED_LAYERS: tuple[Check, ...] = (
    exactness.weight_is_what_forward_computes,
    exactness.output_looks_the_same,
    exactness.special_weights_work,
    costs.cost_is_the_modules,
    modules.gradients_reach_every_factor,
    modules.merged_layers_compute_the_same,
    modules.weight_is_differentiable,
    modules.no_dense_weight_in_forward,
    modules.state_dict_round_trip,
    modules.copies_and_pickles,
)
"""Checks for each supported layer that are repeated on gauged factors, if it can have them."""

FLOAT32_LAYERS: tuple[Check, ...] = (modules.autocast_runs,)
"""Checks for each supported layer in float32."""

THOROUGH_LAYERS: tuple[Check, ...] = (modules.compiles_whole, modules.exports)
"""Slow checks (about a second each), for the supported layers marked `LayerCase.thorough`."""


def method_checks(
    method: str | Method | None = None, *, cases: Sequence[LayerCase] | None = None
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield every check of one method, or of all registered ones, as ``(id, callable)``.

    A callable takes no arguments and raises ``AssertionError`` if the check fails.

    Parameters
    ----------
    method : str, Method or None
        A registered name, an instance, or None for every registered method with its default options.
    cases : sequence of LayerCase or None
        Layers to check; the whole zoo by default.

    Examples
    --------
    In a test file::

        import pytest
        from rankfold.testing import method_checks


        @pytest.mark.parametrize("check", [pytest.param(c, id=i) for i, c in method_checks("mine")])
        def test_mine(check):
            check()
    """
    if method is None:
        for name in methods.registry.names():
            yield from method_checks(name, cases=cases)
        return
    chosen = methods.get(method) if isinstance(method, str) else method
    for case in LAYER_ZOO if cases is None else cases:
        info, more = layer_info(case), FLOAT32_LAYERS if case.dtype == torch.float32 else ()
        more += THOROUGH_LAYERS if case.thorough else ()
        runs: list[tuple[str, Method, tuple[Check, ...]]] = []
        if chosen.supports(info) is not None:
            runs.append(("", chosen, (refusals.unsupported_layers_are_refused,)))
        else:
            runs.append(("", chosen, EVERY_LAYER + more))
            if can_be_gauged(chosen, info):
                runs.append(("", chosen, (gauge_changes_only_the_numbers,)))
                runs.append(("gauged-", GaugedMethod(chosen), GAUGED_LAYERS + more))
        for prefix, subject, checks in runs:
            for check in checks:
                yield f"{chosen.name}-{case.id}-{prefix}{check.__name__}", partial(check, subject, case)


def check_method(method: str | Method, *, cases: Sequence[LayerCase] | None = None) -> int:
    """Run every check of one method; return their number, or raise ``AssertionError`` with every failure.

    The checks of a layer share what the method prepares for it.
    """

    def by_layer() -> Iterator[tuple[str, Callable[[], None]]]:
        for case in LAYER_ZOO if cases is None else cases:
            with methods.sharing_prepared():
                yield from method_checks(method, cases=[case])

    return run_all(by_layer())
