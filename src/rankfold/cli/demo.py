"""``rankfold demo``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

import rankfold as rf
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_data, open_model, open_test
from rankfold.cli._options import FLAGS
from rankfold.cli._session import Output
from rankfold.cli._source import Source
from rankfold.cli._writing import artifact_files, close, destination

NETWORK = "lenet5_mnist5k"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, the fastest for a small network: on a busy machine several threads wait for each other."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


@command("rankfold demo --out rankfold-demo", "out", "seed", out=replace(FLAGS["out"], default="rankfold-demo"))
def demo(given: Given, out: Output) -> None:
    """Compress LeNet-5 for handwritten digits, with weights included in rankfold, in less than a minute.

    The compressed network is fine-tuned on 4,000 digits. Accuracy is measured on 1,000 others, before and after.
    """
    with _one_thread():
        source = Source(model=NETWORK, weights="bundled", data="mnist5k", seed=given.seed)
        to = destination(given.out, source)
        test = open_test(source)
        assert test is not None
        out.say("Compressing LeNet-5 on 5,000 handwritten digits ...")
        training = open_data(source, "train", batch_size=64, shuffle=True, augment=True)
        result = rf.compress(
            open_model(source),
            rf.zoo.example_input(NETWORK),
            budget="params<=24%",  # to a quarter or less whatever the rounding of ranks
            calibration=open_data(source, "calibration"),
            evaluate=rf.top1(test),
            finetune=rf.FineTune(data=training, epochs=6, optimizer="adamw", lr=1e-3, seed=given.seed),
            output=to,
            name="LeNet-5",
            seed=given.seed,
        )
        close(out, "demo", result.report, artifact_files(to.folder))
        out.say(
            "\nNext:\n"
            f"  open {to.folder / 'report.html'} in a browser\n"
            f"  rankfold evaluate {to.folder}        measure the saved model again\n"
            f"  rankfold bench {to.folder}           time it against the original\n"
            "  rankfold inspect torchvision/resnet18   list the layers of another network\n"
            "  rankfold compress --help"
        )
