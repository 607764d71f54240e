"""``rankfold demo``: the whole road on real digits, with nothing to bring."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from rankfold.cli import _options as o
from rankfold.cli._session import command, session

EXAMPLE = "Example: rankfold demo --out rankfold-demo"

NETWORK = "lenet5_mnist5k"
BUDGET = "params<=24%"  # a quarter, with room for ranks being whole numbers
EPOCHS = 6
LR = 1e-3

DemoOut = Annotated[str, typer.Option("--out", "-o", help="Folder for the artefact and its report.", metavar="FOLDER")]


@contextmanager
def _one_thread() -> Iterator[None]:
    """A network this small is fastest on one thread: on a busy machine several mostly wait for each other."""
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


@command
def demo(out: DemoOut = "rankfold-demo", seed: o.Seed = 0, as_json: o.Json = False, quiet: o.Quiet = False) -> None:
    """Compress LeNet-5 for handwritten digits, with weights that come with rankfold, in less than a minute.

    It is trained on 4,000 real digits and measured on 1,000 others, before and after.
    """
    import rankfold as rf
    from rankfold.cli._loading import open_data, open_model, open_test
    from rankfold.cli._road import write
    from rankfold.cli._source import source_of
    from rankfold.cli._writing import artifact_files, check_folder, close

    with session(as_json=as_json, quiet=quiet) as printer, _one_thread():
        folder = check_folder(out)
        source = source_of(NETWORK, weights="bundled", data="mnist5k", seed=seed)
        test = open_test(source)
        assert test is not None
        printer.say("Compressing LeNet-5 on 5,000 real handwritten digits ...")
        training = open_data(source, "train", batch_size=64, shuffle=True, augment=True)
        result = rf.compress(
            open_model(source),
            rf.zoo.example_input(NETWORK),
            budget=BUDGET,
            calibration=open_data(source, "calibration"),
            evaluate=rf.top1(test),
            finetune=rf.FineTune(data=training, epochs=EPOCHS, optimizer="adamw", lr=LR, seed=seed),
            name="LeNet-5",
            seed=seed,
        )
        report = write(result.model, result.report, source, folder)
        close(printer, "demo", report, artifact_files(folder))
        printer.say()
        printer.say("Next:")
        printer.say(f"  open {folder / 'report.html'} in a browser")
        printer.say(f"  rankfold evaluate {folder}        measure the saved model again")
        printer.say(f"  rankfold bench {folder}           time it against the original")
        printer.say("  rankfold inspect torchvision/resnet18   see what could be compressed in a network of yours")
        printer.say("  rankfold compress --help")
