"""Messages name options as the user writes them: in Python by keyword, on the command line by flag."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import rankfold
from rankfold import strategies
from rankfold._config import NAME_ONLY, Code, in_python, spelled, spelling
from rankfold._options import options_of, spellings
from rankfold.api.options import Search
from rankfold.cli import COMMANDS, app
from rankfold.cli._options import FLAGS, GROUPS, flags_of
from rankfold.cli._parsing import parse_options
from rankfold.cli._spelling import key_of, spelling_of
from rankfold.tune import FineTune

Run = Callable[..., Any]

STRATEGY = {field.name for entry in strategies.registry for field in dataclasses.fields(entry.plugin)}  # pyright: ignore[reportArgumentType]
RECIPE = {field.name for field in dataclasses.fields(FineTune)}
STANDS_FOR = {option for flag in FLAGS.values() for option in flag.stands_for}
SEARCH = {name for name, (_, option) in options_of(Search).items() if option.flag is not None}
OPTIONS = sorted(SEARCH | RECIPE | STRATEGY | STANDS_FOR)
VALUES = (NAME_ONLY, ..., True, False, None, 3, "text", Code("rf.something()"))


@functools.cache
def flags(name: str) -> set[str]:
    """Return what can be typed after a command, by typer's own account."""
    return {s for p in typer.main.get_group(app).commands[name].params for s in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_registered_option_is_written_as_a_flag_of_the_command(command: str) -> None:
    one = COMMANDS[command]
    write = spelling_of(flags_of(one.names, one.own))
    for option, value in itertools.product(OPTIONS, VALUES):
        text = write(option, value, "FineTune")
        if text.startswith("--"):
            assert text.split()[0] in flags(command)
        else:
            assert option not in flags_of(one.names, one.own)
            assert text == option or text.endswith(
                f"{option}={in_python(option, value, '').partition('=')[2]}) in Python"
            )


@pytest.mark.parametrize(
    ("commands", "options"), [(("compress", "sweep", "plan"), SEARCH | STRATEGY), (("compress", "finetune"), RECIPE)]
)
def test_commands_write_every_option_of_their_work_as_a_flag(commands: tuple[str, ...], options: set[str]) -> None:
    for command in commands:
        write = spelling_of(flags_of(COMMANDS[command].names, COMMANDS[command].own))
        assert [option for option in options if not write(option, 3, "").startswith("--")] == []


def test_one_name_means_one_option() -> None:
    """Otherwise a message names the wrong flag; checks of a strategy's own options are written by `key_of`."""
    known = {name for names in GROUPS.values() for name in names} | set(FLAGS) | SEARCH
    for one in COMMANDS.values():
        if "search" in one.names:
            assert (known | set(one.own)) & STRATEGY <= {"points"}
            assert {"keep", "objective"} >= RECIPE & STRATEGY


@pytest.mark.parametrize(
    ("option", "value", "python", "flag"),
    [
        ("seed", NAME_ONLY, "seed", "--seed"),
        ("seed", 3, "seed=3", "--seed 3"),
        ("calibration", ..., "calibration=...", "--data"),
        ("evaluate", Code("rf.top1(x)"), "evaluate=rf.top1(x)", "--data"),
        ("data_aware", False, "data_aware=False", "--no-data-aware"),
        ("gauge", True, "gauge=True", "--gauge"),
        ("reconstruct", "weights", "reconstruct='weights'", "--reconstruct weights"),
        ("rounds", 0, "rounds=0", "--strategy-option rounds=0"),
        ("taps", ..., "taps=...", "--strategy-option taps=..."),
        ("proxy", "weight", "proxy='weight'", "--strategy-option proxy=weight"),
        ("max_grad_norm", 1.0, "max_grad_norm=1.0", "--finetune-option max_grad_norm=1.0"),
        ("freeze_batchnorm_statistics", True, "freeze_batchnorm_statistics=True",
         "--finetune-option freeze_batchnorm_statistics=true"),
        ("overrides", NAME_ONLY, "overrides", "--override"),
        ("resume", False, "resume=False", "--restart"),
        ("task", Code("f"), "task=f", "task=f in Python"),
        ("unheard_of", NAME_ONLY, "unheard_of", "unheard_of"),
    ],
)  # fmt: skip
def test_both_ways_of_writing(option: str, value: Any, python: str, flag: str) -> None:
    assert spelled(option, value) == python
    with spelling(spelling_of(flags_of(COMMANDS["compress"].names, COMMANDS["compress"].own))):
        assert spelled(option, value) == flag
    assert spelled(option, value) == python


def test_a_class_is_named_in_python_only() -> None:
    assert spelled("resume", False, of="FineTune") == "FineTune(resume=False)"
    assert key_of("--strategy-option")("points", NAME_ONLY, "CompressNAS") == "--strategy-option points"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-s", "compressnas", "--strategy-option", "rounds=2"), "Pass --data, or --strategy-option rounds=0."),
        (("--strategy-option", "proxy=fisher"), "Pass --data, or --strategy-option proxy=weight."),
        (("--strategy-option", "points=1"), "--strategy-option points must be an integer"),
        (("--seed", str(2**63)), "--seed must be an integer from 0 to 2^63 - 1. Got 9223372036854775808 instead."),
        (("--rank-multiple", "0"), "--rank-multiple must be an integer of at least 1. Got 0 instead."),
    ],
)
def test_messages_name_the_flags_that_were_typed(fail: Run, tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    small = ("lenet5_mnist5k", "--weights", "bundled", "-b", "params<=50%", "--calibration-images", "8")
    done = fail("plan", *small, *args, "--out", tmp_path / "plan.json")
    assert words in " ".join(done.err.split())
    assert "=..." not in done.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--lr", "-1"), "--lr must be a number above 0. Got -1.0 instead."),
        (("--max-steps", "0"), "--max-steps must be an integer of at least 1. Got 0 instead."),
        (("--finetune-option", "warmup=-1"), "--finetune-option warmup must be a share"),
        (("--finetune-option", "momentum=2"), "--finetune-option momentum must be a number above 0 and below 1"),
        (("--checkpoint-every", "3"), "--checkpoint-every 3 needs a checkpoint. Set --checkpoint to a folder or file."),
        (("--finetune-option", "resume=false"), "Use --restart instead."),
        (("--finetune-option", "data=3"), "Use --data instead."),
    ],
)
def test_messages_on_training_name_the_flags(fail: Run, tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    small = ("lenet5_mnist5k", "--data", "mnist5k", "--epochs", "1", "--out", tmp_path / "new")
    assert words in " ".join(fail("compress", *small, *args).err.split())


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("null", None), ("none", None), ("None", None), ("true", True), ("False", False), ("mse", "mse"),
     ("[1, 2]", [1, 2])],
)  # fmt: skip
def test_values_of_options_in_json_or_python(text: str, value: Any) -> None:
    assert parse_options([f"max-grad-norm={text}"]) == {"max_grad_norm": value}


def written_out(source: str, options: set[str]) -> Iterator[str]:
    """Yield the texts of a module that write an option as Python does, docstrings apart."""
    tree = ast.parse(source)
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    pattern = re.compile(rf"\b({'|'.join(sorted(options))})=")
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in skipped else None
        if isinstance(text, str) and pattern.search(text):
            yield text


def test_messages_leave_the_writing_of_options_to_spelled() -> None:
    root = Path(inspect.getfile(rankfold)).parent
    faults = {
        f"{path.relative_to(root)}: {text}"
        for path in root.rglob("*.py")
        if "cli" not in path.parts
        for text in written_out(path.read_text("utf-8"), set(OPTIONS) - {"groups"})  # also a property of layers
    }
    assert faults == {  # reasons that plans and reports store
        "inventory/select.py: excluded by include=",
        "strategies/similarity.py: one of the smallest layers (coverage=",
    }


def test_an_option_that_is_written_out_is_noticed() -> None:
    assert list(written_out("raise E('Pass calibration=...')", {"calibration"})) == ["Pass calibration=..."]
    assert list(written_out("raise E(f'{x} Pass calibration={y}')", {"calibration"})) == [" Pass calibration="]
    assert list(written_out("'Pass calibration=...'", {"calibration"})) == []
    assert list(written_out("raise E('recalibration=3')", {"calibration"})) == []


def test_flags_are_written_once() -> None:
    for command, one in COMMANDS.items():
        known = flags_of(one.names, one.own)
        written = [s for name, flag in known.items() if flag.names is not None for s in spellings(name, flag)]
        assert len(written) == len(set(written)), command
