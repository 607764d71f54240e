"""The contract over every registered method and every layer of the zoo; a new method needs no test of its own here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankfold import methods
from rankfold.testing import LAYER_ZOO, LayerCase, check_method, method_checks

pytestmark = pytest.mark.filterwarnings(
    # torch says once per process that it copies the input; the layers are in the zoo because models have them.
    "ignore:Using padding='same' with even kernel lengths:UserWarning"
)

OPTIONS = {name: {"iterations": 10} for name in ("cp", "filterwise_cp")}
"""What is tested here does not depend on how good the local optimum is."""


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in LAYER_ZOO])
@pytest.mark.parametrize("name", methods.registry.names())
def test_contract(name: str, case: LayerCase) -> None:
    check_method(methods.get(name, OPTIONS.get(name)), cases=[case])


@pytest.mark.parametrize(
    ("name", "options"),
    [("qr", {"pivoting": False}), ("tucker", {"iterations": 0}), ("cp", {"iterations": 60, "norm_limit": 2.0})],
)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in LAYER_ZOO if case.thorough])
def test_contract_with_options(name: str, options: dict[str, object], case: LayerCase) -> None:
    check_method(methods.get(name, options), cases=[case])


def test_the_zoo_is_wide() -> None:
    zoo = LAYER_ZOO
    assert len(zoo) >= 40
    assert len({case.id for case in zoo}) == len(zoo)
    assert {case.dtype for case in zoo} == {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    kinds = {case.kind for case in zoo}
    convs = {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
    assert kinds == convs | {nn.Linear}


def test_the_zoo_is_the_same_every_time_and_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    for case in LAYER_ZOO:
        first, second = case.layer(), case.layer()
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)), case.id
        assert torch.equal(case.input(), case.input()), case.id
        assert first(case.input()).dtype == case.dtype, case.id
    assert torch.equal(state, torch.random.get_rng_state())


def test_every_method_supports_some_layer_and_refuses_some() -> None:
    for name in methods.registry.names():
        ids = [check_id for check_id, _ in method_checks(name)]
        supported = {i for i in ids if i.endswith("full_rank_is_exact")}
        refused = {i for i in ids if i.endswith("unsupported_layers_are_refused")}
        assert supported, name
        assert refused, name
        assert len(supported) + len(refused) == len(LAYER_ZOO), name
        assert any(i.endswith("compiles_whole") for i in ids), name
        assert len(set(ids)) == len(ids), name
