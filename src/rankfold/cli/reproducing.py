"""``rankfold reproduce``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from rankfold import strategies, zoo
from rankfold._config import spelling
from rankfold._files import check_writable
from rankfold._options import COUNT, Flag, integer, spellings
from rankfold.candidates import resolve_methods
from rankfold.cli._command import Given, command
from rankfold.cli._loading import is_trained, open_model, open_work, pick_device
from rankfold.cli._options import FLAGS, GROUPS, REQUIRED, SEARCH, TUNE, budget_flag, flags_of
from rankfold.cli._parsing import parse_budget, parse_options, parse_share, recipe_of, with_data
from rankfold.cli._session import Output
from rankfold.cli._source import Source, given_source
from rankfold.cli._spelling import key_of
from rankfold.errors import ConfigError, DataError, UnknownNameError
from rankfold.records.amounts import either
from rankfold.reporting import words
from rankfold.reporting.studies import Study
from rankfold.reporting.studies.record import MODEL
from rankfold.studies import PAPERS, Paper, Setup, Student
from rankfold.studies import reproduce as run_studies
from rankfold.zoo.factories import is_factory

_STUDENT = "Student"
_STUDENT_FLAGS = ("student", "student_weights", "student_epochs")
_WITH_BUDGET = "; ".join(f"by default {paper.budget} for {name}" for name, paper in PAPERS.items() if paper.budget)
_STUDIES = "; ".join(f"{either(list(paper.studies))} of {name}" for name, paper in PAPERS.items())
_NAMES = (
    "paper", "model", "out", "study", "methods", "drop", "budget", "strategy_option", "calibration_images",
    "student", "student_weights", "student_epochs",
    *(name for name in GROUPS["tuning"] if name not in ("checkpoint", "checkpoint_every", "restart")), "source",
)  # fmt: skip
_OWN = {
    "paper": Flag(kind=str, names=None, default=REQUIRED, metavar="PAPER", help=f"Paper: {either(list(PAPERS))}."),
    "model": replace(
        FLAGS["model"], kind=str | None, default=None,
        help=f"{FLAGS['model'].help} By default the one that rankfold includes with weights and data for the paper.",
    ),
    "out": replace(FLAGS["out"], default="reproduction", help="Folder for the tables, in JSON, Markdown and HTML."),
    "study": Flag(
        kind=list[str] | None, metavar="NAME", help=f"Study to run: {_STUDIES}. By default all; may be repeated.",
    ),
    "methods": Flag(
        kind=str | None, metavar="NAMES", panel=SEARCH,
        help="Factorizations of the studies that compare them, such as svd,tucker. By default those of the paper.",
    ),
    "drop": Flag(
        kind=str, default="1.5%", metavar="SHARE", panel=SEARCH, help="Largest drop of accuracy, such as 1.5% or 0.015."
    ),
    "budget": budget_flag(f"Budget of the studies that use a single one ({_WITH_BUDGET}); may be repeated."),
    "student": Flag(
        kind=str | None, metavar="MODEL", panel=_STUDENT,
        help="Network that learns from MODEL in the study double of rene, such as resnet20_cifar10. By default, for "
        "the default network, a LeNet-5 of half the width.",
    ),
    "student_weights": replace(
        FLAGS["weights"], panel=_STUDENT, stands_for=(),
        help="File of trained weights of the student. By default it starts from random weights.",
    ),
    "student_epochs": Flag(
        kind=int | None, check=integer(1, optional=True), panel=_STUDENT,
        help="Passes over the training data for the student. By default --epochs.",
    ),
    "strategy_option": replace(
        FLAGS["strategy_option"], help="Option of the paper's strategy, such as objective=macs; may be repeated."
    ),
    "epochs": Flag(
        kind=int, default=10, check=COUNT, panel=TUNE,
        help="Passes over the training data, for each model that is trained.",
    ),
}  # fmt: skip


@command("rankfold reproduce similarity --study pairs --out pairs", *_NAMES, **_OWN)
def reproduce(given: Given, out: Output) -> None:
    """Run the studies of a paper on a network, and write tables and charts like those of the paper.

    The studies train many models: expect minutes for the default network, and hours for larger ones. To resume an
    interrupted run, repeat the same command. Finished studies are not repeated. To start over, delete the folder.
    """
    if given.paper not in PAPERS:
        raise UnknownNameError("paper", given.paper, list(PAPERS))
    paper = PAPERS[given.paper]
    for name in given.study or ():
        if name not in paper.studies:
            raise UnknownNameError("study", name, list(paper.studies), of=f"paper {paper.name!r}")
    if given.model is None:
        given.model, given.weights = paper.network, given.weights or paper.weights
        given.data, given.student = given.data or paper.data, given.student or paper.student
    if given.data is None:
        raise DataError("the studies train and measure models. Pass --data, such as mnist5k or cifar10:PATH.")
    drop = parse_share(given.drop)
    if drop is None or not 0 <= drop < 1:
        raise ConfigError(
            f"--drop must be a share of at least 0 % and less than 100 %, such as 1.5%. Got {given.drop!r} instead."
        )
    options = parse_options(given.strategy_option)
    if "drop" in options:
        raise ConfigError("--strategy-option does not take 'drop'. Use --drop instead.")
    _check_flags(given, paper)
    with spelling(key_of("--strategy-option")):
        strategy = strategies.get(paper.strategy, options)
    methods = None if given.methods is None else resolve_methods(given.methods)
    budget = parse_budget(given.budget or ([paper.budget] if paper.budget else None))
    source = given_source(given, given.model)
    recipe = recipe_of(given, source)
    student = _student(given, source, epochs=given.epochs if recipe is None else recipe.epochs)
    folder = Path(given.out).expanduser()
    check_writable(folder)
    work = open_work(source, given)
    recipe = with_data(recipe, given, source)
    assert recipe is not None
    assert work.calibration is not None
    assert work.metric is not None
    setup = Setup(
        model=work.dense, example_input=work.example, calibration=work.calibration, metric=work.metric, recipe=recipe,
        strategy=strategy, drop=float(drop), cache=folder / "cache", methods=methods, seed=given.seed,
        budget=budget, student=student,
    )  # fmt: skip
    names = given.study or list(paper.studies)
    document = run_studies(paper, names, setup, folder, network=given.model, command=_command(given))
    out.show(document.print)
    if given.quiet:
        for study in document.studies:
            out.result(_summary(study))
    files = {suffix: str(folder / f"{paper.name}.{suffix}") for suffix in ("html", "md", "json")}
    for suffix, file in files.items():
        out.say(f"{suffix + ':':<6} {file}")
    out.document({"command": "reproduce", "files": files, "reproduction": document.to_dict()})


def _check_flags(given: Given, paper: Paper) -> None:
    """Raise if a flag does not apply to the studies of the paper, or a study lacks one."""
    for name, used in (("budget", paper.budget), *((name, paper.student) for name in _STUDENT_FLAGS)):
        if getattr(given, name) is not None and used is None:
            raise ConfigError(
                f"the studies of paper {paper.name!r} do not use --{name.replace('_', '-')}. Leave it out."
            )
    if given.student is None:
        if paper.student is not None and "double" in (given.study or paper.studies):
            raise ConfigError("the study 'double' needs a student. Pass --student, such as resnet20_cifar10.")
        for name in _STUDENT_FLAGS[1:]:
            if getattr(given, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} needs a student. Pass --student.")


def _student(given: Given, source: Source, *, epochs: int) -> Student | None:
    """Return the student with its weights; its data is that of the studied network."""
    if given.student is None:
        return None
    own = given_source(given, given.student)
    own = replace(own, weights=given.student_weights)
    normalized = [(zoo.entry(name).mean, zoo.entry(name).std) for name in (source.model, own.model)]
    if normalized[0] != normalized[1] and not is_factory(own.model):
        raise ConfigError(
            f"the student {own.model!r} expects inputs normalized differently from those of {source.model!r}. Choose "
            "networks for the same data."
        )
    return Student(
        name=given.student, model=open_model(own, pick_device(given.device)), trained=is_trained(own),
        epochs=given.student_epochs or epochs,
    )  # fmt: skip


def _command(given: Given) -> str:
    """Return the command without its studies and its output."""
    parts = ["rankfold", "reproduce"]
    for name, flag in flags_of(_NAMES, _OWN).items():
        value = getattr(given, name)
        is_default = value is None or (value == flag.default and name not in given.named)
        if is_default or name in ("out", "study", "as_json", "quiet"):
            continue
        option = [] if flag.names is None else [spellings(name, flag)[0]]
        for one in value if isinstance(value, list) else [value]:
            parts += option if one is True else [*option, str(one)]
    return shlex.join(parts)


def _summary(study: Study) -> str:
    """Return the smallest model of a study within the drop."""
    fitting = [trial for trial in study.trials if study.within(trial)]
    if not fitting:
        return f"{study.name}: no model is within the drop"
    best = min(fitting, key=lambda trial: trial.parts[MODEL].params)
    removed = words.reduction(study.dense[MODEL].params, best.parts[MODEL].params)
    return f"{study.name}: {best.name}, {removed} of the parameters removed"
