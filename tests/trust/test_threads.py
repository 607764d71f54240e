"""Threads wait for each other, on one model and on several; none gets what belongs to another."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold._turns import in_turn, resting, turn
from rankfold.errors import RankfoldError, RankfoldWarning
from rankfold.records import Choice
from rankfold.surgery import factored_layers

PLAN = rf.Plan(layers={"0": Choice(method="svd", ranks=(3,))})
X = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
SECONDS = 30


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.ReLU(), nn.Linear(12, 12)).train()


def data(scale: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(int(scale * 10))
    weights = torch.logspace(0, scale, 12)
    return [torch.randn(4, 12, generator=generator) * weights for _ in range(6)]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


VERBS: dict[str, Callable[[nn.Module, Any, Path], Any]] = {
    "apply": lambda m, d, _: weights(rf.apply(m, PLAN, calibration=d)),
    "sequential": lambda m, d, _: weights(rf.apply(m, PLAN, calibration=d, reconstruct="sequential")),
    "plan": lambda m, d, _: rf.plan(m, X, budget="params<=70%", calibration=d).layers["0"],
    "compress": lambda m, d, out: weights(rf.compress(m, X, budget="params<=70%", calibration=d, output=out).model),
    "inspect": lambda m, d, _: rf.inspect(m, d[0]).total,
    "evaluate": lambda m, d, _: rf.evaluate(m, lambda model: float(model(d[0]).sum())),
    "agreement": lambda m, d, _: rf.agreement(m, d)(m),
}


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Run jobs in threads that start at once."""
    barrier = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        barrier.wait(SECONDS)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(SECONDS) for future in [pool.submit(run, job) for job in jobs]]


def equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("shared", [True, False])
def test_threads_get_what_they_get_alone(verb: str, shared: bool, tmp_path: Path) -> None:
    act, model = VERBS[verb], network()
    models = [model, model if shared else network()]
    before = [weights(m) for m in models]
    sets = [data(0.1), data(1.5)]
    alone = [act(m, d, tmp_path / "alone") for m, d in zip(models, sets, strict=True)]
    if verb in ("apply", "sequential", "compress"):
        assert not equal(*alone)
    for number in range(2):
        jobs = [
            lambda m=m, d=d, i=i, n=number: act(m, d, tmp_path / f"{n}{i}")
            for i, (m, d) in enumerate(zip(models, sets, strict=True))
        ]
        for found, expected in zip(together(*jobs), alone, strict=True):
            assert equal(found, expected)
    assert all(torch.equal(weights(m), b) for m, b in zip(models, before, strict=True))
    assert all(module.training for m in models for module in m.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for m in models for module in m.modules())


def test_a_shared_part_of_two_models() -> None:
    part = network()
    models = [nn.Sequential(part, nn.Linear(12, 3)), nn.Sequential(part, nn.Linear(12, 5))]
    plan = rf.Plan(layers={"0.0": PLAN.layers["0"]})
    sets = [data(0.1), data(1.5)]
    alone = [weights(rf.apply(m, plan, calibration=d)) for m, d in zip(models, sets, strict=True)]
    jobs = [lambda m=m, d=d: weights(rf.apply(m, plan, calibration=d)) for m, d in zip(models, sets, strict=True)]
    assert all(map(torch.equal, together(*jobs), alone))


def test_one_of_two_threads_changes_a_model_in_place() -> None:
    model = network()

    def change() -> str:
        try:
            rf.apply_(model, PLAN)
        except RankfoldError as error:
            return str(error)
        return ""

    assert sorted(bool(message) for message in together(change, change)) == [False, True]
    assert list(factored_layers(model)) == ["0"]


def test_fine_tuning_and_inspection() -> None:
    model = rf.apply(network(), PLAN)
    batches = [(x, torch.zeros(4, dtype=torch.long)) for x in data(0.1)]
    recipe = rf.FineTune(data=batches, epochs=1, loss="task")
    alone = weights(rf.finetune(model, recipe).model)
    tuned, found = together(lambda: weights(rf.finetune(model, recipe).model), lambda: rf.inspect(model, X))
    assert torch.equal(tuned, alone)
    assert found.layers


def test_threads_of_a_metric_may_use_the_model_and_the_verbs() -> None:
    def metric(model: nn.Module) -> float:
        with ThreadPoolExecutor(3) as pool:
            jobs = [
                pool.submit(lambda: float(model(X).detach().sum())),
                pool.submit(lambda: rf.agreement(model, [X])(model)),
                pool.submit(lambda: float(rf.inspect(model, X).total.params)),
            ]
            return sum(job.result(SECONDS) for job in jobs) * 0 + 1

    model = network()
    result = rf.compress(
        model, X, budget="params<=70%", evaluate=metric, finetune=rf.FineTune(
            data=[(X, torch.zeros(4, dtype=torch.long))], epochs=1, loss="task", target=2.0
        ),
    )  # fmt: skip
    assert result.report.metrics[0].compressed == 1
    assert rf.evaluate(model, metric) == 1


def test_a_metric_of_one_thread_is_not_seen_by_another() -> None:
    """It calls the model as it is, while the other thread watches the layers."""
    model, batches = network(), data(0.1)
    alone = weights(rf.apply(model, PLAN, calibration=batches))

    def metric(measured: nn.Module) -> float:
        return sum(float(measured(1000 * x).mean()) for x in batches * 20)

    value = rf.evaluate(model, metric)
    found = together(lambda: rf.evaluate(model, metric), lambda: weights(rf.apply(model, PLAN, calibration=batches)))
    assert found[0] == value
    assert torch.equal(found[1], alone)


def _turn_in_child(queue: Any) -> None:
    with turn():
        queue.put("free")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_waits_for_nobody() -> None:
    context = multiprocessing.get_context("fork")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with turn():
            held.set()
            done.wait(SECONDS)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(SECONDS)
    queue = context.Queue()
    child = context.Process(target=_turn_in_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=SECONDS) == "free"
    finally:
        done.set()
        holder.join()
        child.join(SECONDS)


def test_a_turn_is_given_back_after_an_error() -> None:
    @in_turn
    def fails() -> None:
        with resting():
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    assert together(lambda: rf.inspect(network(), X).total, lambda: rf.inspect(network(), X).total)


def test_nobody_enters_a_firm_turn() -> None:
    order: list[str] = []

    def other() -> None:
        with turn():
            order.append("other")

    thread = threading.Thread(target=other)
    with turn(firm=True), resting():
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(SECONDS)
    assert order == ["first", "other"]


def test_a_thread_that_waits_for_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankfold._turns.PATIENCE", 0.05)
    told: list[str] = []

    def other() -> None:
        with pytest.warns(RankfoldWarning, match="this thread is waiting for .* 'MainThread'") as caught, turn():
            told.extend(str(w.message) for w in caught)

    thread = threading.Thread(target=other)
    with turn():
        thread.start()
        thread.join(0.3)
        assert not told
    thread.join(SECONDS)
    assert len(told) == 1
