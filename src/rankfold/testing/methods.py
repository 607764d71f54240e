"""Every check over every method and every layer of the zoo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from rankfold import methods
from rankfold.methods import Method
from rankfold.testing import accuracy, costs, exactness, modules, refusals
from rankfold.testing.cases import LayerCase, layer_zoo
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
    modules.weight_is_differentiable,
    modules.no_dense_weight_in_forward,
    modules.state_dict_round_trip,
    modules.copies_and_pickles,
    refusals.bad_ranks_are_refused,
    refusals.broken_weights_are_refused,
)
"""Checks of each layer that a method supports."""

GAUGED_LAYERS: tuple[Check, ...] = (
    exactness.weight_is_what_forward_computes,
    exactness.output_looks_the_same,
    exactness.special_weights_work,
    costs.cost_is_the_modules,
    modules.gradients_reach_every_factor,
    modules.weight_is_differentiable,
    modules.no_dense_weight_in_forward,
    modules.state_dict_round_trip,
    modules.copies_and_pickles,
)
"""Checks of each supported layer that are made once more on gauged factors, where there are any."""

FLOAT32_LAYERS: tuple[Check, ...] = (modules.autocast_runs,)
"""Checks of each supported layer in float32."""

THOROUGH_LAYERS: tuple[Check, ...] = (modules.compiles_whole, modules.exports)
"""Checks that take a second each: of the supported layers marked `LayerCase.thorough`."""

UNSUPPORTED_LAYERS: tuple[Check, ...] = (refusals.unsupported_layers_are_refused,)
"""Checks of each layer that a method does not support."""


def method_checks(
    method: str | Method | None = None, *, cases: Sequence[LayerCase] | None = None
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield every check of one method, or of all registered ones, as ``(id, callable)``.

    A callable takes nothing, returns nothing, and raises ``AssertionError`` saying what is wrong.

    Parameters
    ----------
    method : str, Method or None
        A registered name, an instance, or None for every registered method with its default options.
    cases : sequence of LayerCase or None
        Layers to check on; the whole zoo by default.

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
    for case in layer_zoo() if cases is None else cases:
        info = layer_info(case)
        if chosen.supports(info) is not None:
            checks = UNSUPPORTED_LAYERS
        else:
            checks = EVERY_LAYER
            checks += FLOAT32_LAYERS if case.dtype == torch.float32 else ()
            checks += THOROUGH_LAYERS if case.thorough else ()
        for check in checks:
            yield f"{chosen.name}-{case.id}-{check.__name__}", partial(check, chosen, case)
        if chosen.supports(info) is None and can_be_gauged(chosen, info):
            checks = GAUGED_LAYERS
            checks += FLOAT32_LAYERS if case.dtype == torch.float32 else ()
            checks += THOROUGH_LAYERS if case.thorough else ()
            yield (
                f"{chosen.name}-{case.id}-gauge_changes_only_the_numbers",
                partial(gauge_changes_only_the_numbers, chosen, case),
            )
            for check in checks:
                yield f"{chosen.name}-{case.id}-gauged-{check.__name__}", partial(check, GaugedMethod(chosen), case)


def check_method(method: str | Method, *, cases: Sequence[LayerCase] | None = None) -> int:
    """Run every check of one method.

    Returns
    -------
    int
        The number of checks.

    Raises
    ------
    AssertionError
        Naming every check that failed, with what it said.
    """
    return run_all(method_checks(method, cases=cases))
