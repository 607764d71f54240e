"""``rankfold reproduce``: the studies of papers on a task that is easy to learn, their documents, and resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rankfold as rf
from rankfold import zoo
from rankfold.errors import InfeasibleBudget, RankfoldError
from rankfold.reporting import MetricValue, RoundRow
from rankfold.reporting.studies import Amounts, Reproduction, Study, Trial
from rankfold.studies import PAPERS, paper
from rankfold.studies.paper import Setup

Run = Callable[..., Any]

NETWORKS = """
from torch import nn

def small(num_classes=4):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU(), nn.Linear(16, num_classes)
    )

def smaller(num_classes=4):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * 4, num_classes)
    )
"""
SETTINGS = ("--epochs", "1", "--lr", "0.05", "--drop", "30%", "--batch-size", "32")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a network, its trained weights and its data: which quadrant of a noisy 8x8 image is bright."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "networks.py").write_text(NETWORKS)
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 128), ("test", 80)):
        labels = np.arange(count) % 4
        images = draw.random((count, 8, 8), dtype=np.float32) * 0.5
        for image, label in zip(images, labels, strict=True):
            image[label // 2 * 4 :, label % 2 * 4 :][:4, :4] += 0.5
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    np.savez(folder / "task.npz", **arrays)
    network, data = f"{folder / 'networks.py'}:small", f"npz:{folder / 'task.npz'}"
    model = zoo.create(network, seed=0)
    recipe = rf.FineTune(data=zoo.data(data, split="train", batch_size=32, shuffle=True), epochs=6, lr=0.05)
    trained = rf.finetune(model, recipe).model
    torch.save(trained.state_dict(), folder / "weights.pt")
    return {"network": network, "data": data, "weights": str(folder / "weights.pt")}


@pytest.fixture
def command(task: dict[str, str]) -> tuple[str, ...]:
    return ("reproduce", "similarity", task["network"], "--weights", task["weights"], "--data", task["data"], *SETTINGS)


def amounts(trial: Trial) -> dict[str, tuple[int, int]]:
    return {part: (size.params, size.macs) for part, size in trial.parts.items()}


def test_every_study_and_its_documents(
    run: Run, fail: Run, command: tuple[str, ...], task: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    pairs = run(*command, "--study", "pairs", "--methods", "tucker,tt,svd", "--out", out, "--json").document
    assert [study["name"] for study in pairs["reproduction"]["studies"]] == ["pairs"]
    others = ("--study", "baselines", "--study", "steps", "--study", "finetuning", "--study", "pruning", "--out", out)
    done = run(*command, *others, "--json").document
    document = Reproduction.load(out / "similarity.json")
    assert document.to_dict() == done["reproduction"] == json.loads(Path(done["files"]["json"]).read_text("utf-8"))
    studies = {study.name: study for study in document.studies}
    assert list(studies) == list(PAPERS["similarity"].studies), "in the order of the paper"
    names = {name: [trial.name for trial in study.trials] for name, study in studies.items()}
    assert names["pairs"] == ["tucker+svd", "tt+svd", "hybrid", "compressnas"]
    assert names["steps"] == [f"{step} %, {most}" for step in (2, 5, 10) for most in (1, 3, 10)]
    assert names["finetuning"] == ["one-shot", "iterative"]
    assert names["baselines"] == ["similarity", "vbmf", "pruning, l1", "pruning, l2", "pruning, geometric_median"]
    assert names["pruning"][:2] == ["similarity", "10 % fewer filters"]
    check_sizes(studies, task)
    one_shot, iterative = studies["finetuning"].trials
    assert iterative.seconds["apply"] > one_shot.seconds["apply"]
    assert one_shot.overhead == pytest.approx(sum(one_shot.seconds.values()) - one_shot.seconds["finetune"])
    assert studies["finetuning"].epoch_seconds is not None
    check_pruning(studies["pruning"])
    check_pages(out, document)

    # Finished studies are not repeated, whatever their order; with another option they are.
    monkeypatch.setattr(paper, "compress", stopped)
    assert run(*command, *others, "--json").document["reproduction"] == done["reproduction"]
    assert "stopped" in fail(*command, *others, "--seed", "1").err
    shown = run(*command, *others, "-q").out.splitlines()
    assert [line.partition(":")[0] for line in shown] == list(studies)
    assert all(line.endswith("of the parameters removed") for line in shown)


def stopped(*_: Any, **__: Any) -> Any:
    raise RankfoldError("stopped")


def check_pruning(study: Study) -> None:
    """Fewer filters leave fewer parameters in the convolutions and in the linear layers."""
    for one, other in pairwise(study.trials):
        for part in ("model", "conv", "linear"):
            assert other.parts[part].params < one.parts[part].params
    last = study.trials[-1]
    assert last.name == "80 % fewer filters"
    norm = study.dense["model"].params - study.dense["conv"].params - study.dense["linear"].params
    left = last.parts["model"].params - last.parts["conv"].params - last.parts["linear"].params
    assert (norm, left) == (16, 2)  # one of eight channels of the BatchNorm is left


def check_sizes(studies: dict[str, Study], task: dict[str, str]) -> None:
    """Compare the sizes of trials with the report of the same search, which counts the built model."""
    model = zoo.create(task["network"], weights=task["weights"])
    data = {split: zoo.data(task["data"], split=split, batch_size=32) for split in ("train", "calibration", "test")}
    result = rf.compress(
        model, next(iter(data["test"]))[0][:1], calibration=data["calibration"], evaluate=rf.top1(data["test"]),
        finetune=rf.FineTune(
            data=zoo.data(task["data"], split="train", batch_size=32, shuffle=True), epochs=1, lr=0.05
        ),
        strategy=rf.Similarity(drop=0.3),
    )  # fmt: skip
    report = result.report
    trial, study = studies["baselines"].trials[0], studies["baselines"]
    sizes, dense = {"model": (report.after.params, report.after.macs)}, {}
    for kind, start in (("conv", "Conv2d"), ("linear", "Linear")):
        rows = [row for row in report.layers if row.layer.startswith(start)]
        sizes[kind] = sum(row.after.params for row in rows), sum(row.after.macs for row in rows)
        dense[kind] = sum(row.before.params for row in rows), sum(row.before.macs for row in rows)
    assert amounts(trial) == sizes
    assert {part: (study.dense[part].params, study.dense[part].macs) for part in dense} == dense
    assert study.dense["model"].params == report.before.params == sum(p.numel() for p in model.parameters())
    assert (trial.metric, trial.drop) == (report.rounds[-1].metric, report.rounds[-1].drop)
    assert trial.rounds == len(report.rounds)
    same = [studies["pairs"].trials[0], studies["steps"].trials[4], studies["finetuning"].trials[0]]
    assert [amounts(one) for one in same[1:]] == [sizes] * 2
    for study in studies.values():
        assert study.allowed == 0.3
        assert study.metric.name == "top-1"
        for one in study.trials:
            assert one.parts["model"].params < study.dense["model"].params
            assert one.drop == pytest.approx(study.metric.dense - one.metric)
    hybrid = studies["pairs"].trials[2].parts["model"].params
    assert hybrid <= min(one.parts["model"].params for one in studies["pairs"].trials[:2])


def check_pages(folder: Path, document: Reproduction) -> None:
    page, text = ((folder / f"similarity.{suffix}").read_text("utf-8") for suffix in ("html", "md"))
    for study in document.studies:
        for words in (study.title, study.command, *(trial.name for trial in study.trials)):
            assert words in text
    logged = sum(sum(len(trial.log) for trial in study.trials) > 1 for study in document.studies)
    assert logged
    charts = len(document.studies) * 3 + 1 + logged
    assert page.count("<svg") == charts, "two parts and the accuracy of each study, the overhead, and the rounds"
    assert "iterative" in str(document)


def test_an_interrupted_command_resumes(
    run: Run, fail: Run, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = ("--study", "finetuning", "--study", "baselines", "--out", tmp_path)
    compress, calls = paper.compress, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(options["strategy"])
        return stopped() if options["strategy"] == "vbmf" else compress(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(paper, "compress", interrupted)
        assert "stopped" in fail(*command, *studies).err
    first = Reproduction.load(tmp_path / "similarity.json")
    assert [study.name for study in first.studies] == ["finetuning"]
    assert len(calls) == 4
    loops = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("loop-*")}
    assert loops
    shown = run(*command, *studies).out
    assert "vbmf" in shown
    resumed = Reproduction.load(tmp_path / "similarity.json")
    assert resumed.studies[0] == first.studies[0]
    assert [study.name for study in resumed.studies] == ["finetuning", "baselines"]
    assert {file: file.stat().st_mtime_ns for file in loops} == loops, "its rounds were not repeated"


@pytest.fixture
def rene(task: dict[str, str]) -> tuple[str, ...]:
    return ("reproduce", "rene", task["network"], "--weights", task["weights"], "--data", task["data"], *SETTINGS)


def test_the_studies_of_rene(run: Run, rene: tuple[str, ...], task: dict[str, str], tmp_path: Path) -> None:
    student = task["network"].replace(":small", ":smaller")
    options = ("--student", student, "--student-epochs", "8", "--budget", "params<=40%", "--out", tmp_path)
    run(*rene, *options, "-q")
    document = Reproduction.load(tmp_path / "rene.json")
    studies = {study.name: study for study in document.studies}
    assert list(studies) == ["ranks", "distribution", "tradeoff", "double"]
    check_manual_ranks(studies["ranks"])
    check_tradeoff(studies["tradeoff"])

    dense = studies["distribution"].dense["model"].params
    tt, cp = studies["distribution"].trials
    assert (tt.name, cp.name) == ("tt", "cp")
    assert {name: len(ranks) for name, ranks in tt.ranks.items() if name in "02"} == {"0": 3, "2": 3}
    assert {name: len(ranks) for name, ranks in cp.ranks.items() if name in "02"} == {"0": 1, "2": 1}
    assert all(one.parts["model"].params <= 0.4 * dense for one in (tt, cp))

    double = studies["double"]
    rows = {one.name: one for one in double.trials}
    assert list(rows) == ["student", "student, distilled", "teacher, rene", "student, rene"]
    sizes = {name: row.parts["model"].params for name, row in rows.items()}
    assert sizes["student"] == sizes["student, distilled"] == sum(p.numel() for p in zoo.create(student).parameters())
    assert sizes["student, rene"] <= 0.4 * sizes["student"]
    assert sizes["teacher, rene"] <= 0.4 * double.dense["model"].params
    assert rows["student, distilled"].metric > rows["student"].metric + 0.2, "it has learned from the teacher"
    for row in double.trials:
        assert row.drop == pytest.approx(double.metric.dense - row.metric), "against the teacher"

    text, page = ((tmp_path / f"rene.{suffix}").read_text("utf-8") for suffix in ("md", "html"))
    assert "before fine-tuning" in text
    assert "Distribution of the ranks (Fig. 5): ranks" in text
    assert "Loss by parameters left" in page
    assert "Largest rank of each layer" in page


def size_with_one_rank(rank: int) -> int:
    """Return the parameters of the network with one rank for all layers, of which a factored one must be smaller."""
    size = 16  # of BatchNorm
    for inputs, outputs, limits in ((1, 8, (1, 3, 8)), (8, 8, (8, 24, 8))):
        r = [min(rank, limit) for limit in limits]
        factored = inputs * r[0] + 3 * r[0] * r[1] + 3 * r[1] * r[2] + r[2] * outputs
        size += min(factored, 9 * inputs * outputs) + outputs
    for inputs, outputs in ((128, 16), (16, 4)):
        size += min(min(rank, outputs) * (inputs + outputs), inputs * outputs) + outputs
    return size


def check_manual_ranks(study: Study) -> None:
    """Check that no larger rank fits; shares below that of rank 1 are noted."""
    rows, dense = {one.name: one for one in study.trials}, study.dense["model"].params
    sizes = [size_with_one_rank(rank) for rank in range(1, 25)]
    assert dense == sizes[-1]
    for share in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75):
        name = f"manual {share:.0%}".replace("%", " %")
        fitting = [size for size in sizes if size <= share * dense]
        if not fitting:
            assert name not in rows
            assert any(note.startswith(f"{name}: rank 1 in all layers keeps") for note in study.notes)
            continue
        assert rows[name].parts["model"].params == max(fitting)
        searched = rows[name.replace("manual", "rene")]
        assert searched.parts["model"].params <= share * dense
        assert rows[name].before is not None
        assert searched.before is not None


def check_tradeoff(study: Study) -> None:
    """Check that more parameters mean a smaller loss, along beta and along the scale."""
    betas, budgets = study.trials[:5], study.trials[5:]
    assert [one.name for one in betas] == [f"beta {beta:g}" for beta in (1.0, 0.8, 0.6, 0.4, 0.2)]
    assert [one.name.partition(",")[0] for one in budgets] == ["75 %", "50 %", "25 %"]
    scales = [float(one.name.partition("scale ")[2]) for one in budgets]
    assert scales == sorted(scales)
    for curve in (betas, tuple(reversed(budgets))):
        sizes, losses = [one.parts["model"].params for one in curve], [one.loss for one in curve]
        assert sizes == sorted(sizes)
        assert losses == sorted(losses, reverse=True)
    dense = study.dense["model"].params
    for one, share in zip(budgets, (0.75, 0.5, 0.25), strict=True):
        assert one.parts["model"].params <= share * dense


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("reproduce", "similarity", "--budget", "params<=50%"), "do not use --budget"),
        (("reproduce", "similarity", "--student", "lenet5_half_mnist5k"), "do not use --student"),
        (("reproduce", "rene", "{network}", "--data", "{data}"), "the study 'double' needs a student"),
        (
            ("reproduce", "rene", "{network}", "--data", "{data}", "--study", "ranks", "--student-epochs", "2"),
            "--student-epochs needs a student",
        ),
        (("reproduce", "rene", "--student", "resnet20_cifar10"), "normalized differently"),
        (("reproduce", "rene", "--student-epochs", "0"), "--student-epochs"),
        (("reproduce", "rene", "--budget", "params<=0%"), "would leave nothing"),
        (("reproduce", "similrity"), "Did you mean 'similarity'"),
        (("reproduce", "similarity", "--study", "pair"), "Did you mean 'pairs'"),
        (("reproduce", "similarity", "--methods", "tuker"), "Did you mean 'tucker'"),
        (("reproduce", "similarity", "--drop", "much"), "--drop must be a share of at least 0 % and less than 100 %"),
        (("reproduce", "similarity", "--drop", "100%"), "'100%'"),
        (("reproduce", "similarity", "--epochs", "0"), "--epochs"),
        (("reproduce", "similarity", "--strategy-option", "drop=0.1"), "Use --drop instead"),
        (("reproduce", "similarity", "--strategy-option", "step_size=3"), "--strategy-option step_size must be"),
        (("reproduce", "similarity", "--strategy-option", "stepsize=0.1"), "Did you mean 'step_size'"),
        (("reproduce", "similarity", "lenet5_mnist5k"), "--data"),
        (("reproduce", "similarity", "--out", "{file}"), "{file}"),
        (("reproduce", "similarity", "{network}", "--data", "{data}", "--out", "{damaged}"), "similarity.json"),
        (("reproduce", "similarity", "{network}", "--data", "{data}", "--out", "{other}"), "has the studies of 'vgg'"),
    ],
)
def test_bad_input(fail: Run, task: dict[str, str], tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    paths = {name: tmp_path / name for name in ("file", "damaged", "other", "new")}
    paths["file"].write_text("a file")
    other = Reproduction(paper="similarity", citation="", model_name="vgg")
    for name, text in (("damaged", "{"), ("other", other.to_json())):
        paths[name].mkdir()
        (paths[name] / "similarity.json").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    out = () if "--out" in args else ("--out", "{new}")
    done = fail(*(arg.format(**paths, **task) for arg in (*args, *out)))
    assert words.format(**paths) in " ".join(done.err.split())
    assert sorted(tmp_path.rglob("*")) == before


def trial(name: str, *, params: int, metric: float) -> Trial:
    parts = {"model": Amounts(params=params, macs=2 * params), "conv": Amounts(params=params, macs=params)}
    parts["linear"] = Amounts(params=0, macs=0)
    return Trial(name=name, parts=parts, metric=metric, drop=0.9 - metric, seconds={"finetune": 3.0, "apply": 1.0})


STUDY = Study(
    name="pairs", title="Pairs", metric=MetricValue(name="top-1", dense=0.9), allowed=0.015,
    dense=trial("", params=100, metric=0.9).parts, epoch_seconds=0.5,
    trials=(
        trial("small", params=10, metric=0.8), trial("edge", params=20, metric=0.885),
        trial("large", params=120, metric=0.9),
    ),
)  # fmt: skip


def test_a_drop_that_is_too_large_is_marked() -> None:
    """The largest allowed drop itself is allowed, although 0.9 - 0.885 exceeds 0.015 in floating point."""
    assert STUDY.trials[1].drop > STUDY.allowed
    assert [STUDY.within(one) for one in STUDY.trials] == [False, True, True]
    document = Reproduction(paper="similarity", citation="", model_name="net", studies=(STUDY,))
    rows = {line.split(" | ")[0].strip("| "): line for line in document.to_markdown().splitlines() if " | " in line}
    assert "-10.00 X" in rows["small"]
    assert "X" not in rows["edge"] + rows["large"]
    assert "20 % more" in rows["large"]
    assert "80 %" in rows["edge"]
    assert "2.0 epochs" in rows["edge"]
    assert "linear" not in rows[""]
    assert "12 s" in rows["**all**"]
    page = document.to_html()
    assert "small X" in page
    assert "Reduction in the linear layers" not in page
    empty = replace(document, studies=(replace(STUDY, trials=(), notes=("vbmf: impossible",)),))
    assert "vbmf: impossible" in empty.to_html()
    assert Reproduction.from_json(empty.to_json()) == empty


def test_rounds_are_listed_and_drawn() -> None:
    log = tuple(
        RoundRow(
            run="tucker+svd", number=number, amount=10 * number, metric=metric, drop=0.9 - metric,
            settings={"a": "svd 1"}, similarity={"a": 0.5, "b": 0.75} if number == 1 else {},
            raised=("a",) if number == 1 else (), seconds={"finetune": 2.0, "apply": 1.0},
        )
        for number, metric in ((1, 0.7), (2, 0.89))
    )  # fmt: skip
    study = replace(STUDY, trials=(replace(STUDY.trials[1], log=log), STUDY.trials[0]))
    document = Reproduction(paper="similarity", citation="", model_name="net", studies=(study,))
    assert Reproduction.from_json(document.to_json()) == document
    lines = document.to_markdown().splitlines()
    rows = [line for line in lines[lines.index("## Pairs: rounds") :] if line.startswith("| edge")]
    assert [" ".join(row.split()) for row in rows] == [
        "| edge | 1 | 10 | 70.00 % | 0.2000 | a 0.5000 | 1 | 3 s |",
        "| edge | 2 | 20 | 89.00 % | 0.01000 | – | 0 | 3 s |",
    ]
    page = document.to_html()
    assert page.count("top-1 by round") == 2  # the heading and the label of the drawing
    assert page.count("drop of 1.5 points") == 2  # in this chart and in that of the parameters
    assert "by round" not in replace(document, studies=(STUDY,)).to_html()


def test_a_search_that_cannot_meet_its_bound_is_noted() -> None:
    model, x = torch.nn.Linear(4, 4), torch.zeros(1, 4)
    setup = Setup(
        model=model, example_input=x, calibration=[], metric=rf.top1([(x, torch.zeros(1).long())]),
        recipe=rf.FineTune(), strategy=rf.Similarity(), drop=0.1, cache=Path("cache"),
    )  # fmt: skip

    def impossible() -> list[Trial]:
        raise InfeasibleBudget("cannot be met.\nmore", [])

    study = setup.study("one", "One", {"a": impossible, "b": lambda: [STUDY.trials[0]]}, notes=["first"])
    assert study.trials == STUDY.trials[:1]
    assert study.notes == ("first", "a: cannot be met.")
    assert study.dense["linear"] == study.dense["model"] == Amounts(params=20, macs=16)
