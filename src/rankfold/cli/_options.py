"""Options that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

from typing import Annotated

import typer

MODEL_HELP = "Network: a name of the zoo, torchvision/NAME, timm/NAME, pkg.module:factory or file.py:factory."
DATA_HELP = "Data set: mnist5k, cifar10:PATH, imagefolder:PATH, npz:PATH, pkg.module:factory or file.py:factory."
_SOURCE = "What is worked on"
_PLAN = "How to compress"
_TUNE = "Fine-tuning"
_OUT = "Output"

Model = Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)]
Artifact = Annotated[
    str, typer.Argument(help="Folder that compress, apply or finetune wrote.", metavar="ARTEFACT", show_default=False)
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help=f"{MODEL_HELP} By default the one that the artefact was made from.", metavar="MODEL",
                 rich_help_panel=_SOURCE),
]  # fmt: skip
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="File of the trained weights (.safetensors or a state dict of torch), or 'bundled'; random if left out.",
        metavar="FILE",
        rich_help_panel=_SOURCE,
    ),
]
Classes = Annotated[
    int | None,
    typer.Option("--num-classes", help="Number of outputs, where it is not the network's own.", min=1,
                 rich_help_panel=_SOURCE),
]  # fmt: skip
Data = Annotated[str | None, typer.Option("--data", help=DATA_HELP, metavar="SPEC", rich_help_panel=_SOURCE)]
TrustSource = Annotated[
    bool,
    typer.Option("--trust-source", help="Run the Python code (factories) that the artefact's source.json names.",
                 rich_help_panel=_SOURCE),
]  # fmt: skip
InputSize = Annotated[
    str | None,
    typer.Option("--input-size", help="Shape of an input, batch included, such as 1,3,224,224.", metavar="SIZES",
                 rich_help_panel=_SOURCE),
]  # fmt: skip
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Images per batch (128).", min=1, rich_help_panel=_SOURCE, show_default=False),
]
LimitTest = Annotated[
    int | None,
    typer.Option("--limit-test", help="Measure on at most this many test images.", min=1, rich_help_panel=_SOURCE),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="Where models run: auto (cuda if there is one), cpu, cuda, cuda:1.", rich_help_panel=_SOURCE
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", help="Of everything random.", min=0, max=2**63 - 1, rich_help_panel=_SOURCE)
]

Budget = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        "-b",
        help="Upper bound: params<=25%, params/4, macs<=0.5, flash<=512KiB ...; may be repeated.",
        metavar="BOUND",
        rich_help_panel=_PLAN,
    ),
]
STRATEGY = "compressnas"
"""The default, which is that of `rankfold.plan`; written out because the help must not wait for torch."""

Strategy = Annotated[
    str, typer.Option("--strategy", "-s", help="Who chooses the ranks: compressnas, energy, uniform, vbmf, manual.",
                      rich_help_panel=_PLAN),
]  # fmt: skip
Option = Annotated[
    list[str] | None,
    typer.Option("--option", help="Option of the strategy, such as rounds=2; may be repeated.", metavar="KEY=VALUE",
                 rich_help_panel=_PLAN),
]  # fmt: skip
Methods = Annotated[
    str | None,
    typer.Option("--methods", help="Factorizations to choose from, such as svd,tucker, or all.", metavar="NAMES",
                 rich_help_panel=_PLAN),
]  # fmt: skip
Include = Annotated[
    list[str] | None,
    typer.Option("--include", help="Consider only layers of this name pattern; may be repeated.", metavar="PATTERN",
                 rich_help_panel=_PLAN),
]  # fmt: skip
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", help="Keep layers of this name pattern; may be repeated.", metavar="PATTERN",
                 rich_help_panel=_PLAN),
]  # fmt: skip
KeepFirstLast = Annotated[
    bool,
    typer.Option(
        "--keep-first-last", help="Keep the first convolution and the last classifier.", rich_help_panel=_PLAN
    ),
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        help="Decide a layer by hand: NAME=METHOD:RANKS, NAME=METHOD:SHARE (such as 0.5) or NAME=keep.",
        metavar="CHOICE",
        rich_help_panel=_PLAN,
    ),
]
RankMultiple = Annotated[
    int | None, typer.Option("--rank-multiple", help="Ranks are multiples of this.", min=1, rich_help_panel=_PLAN)
]
Gauge = Annotated[
    bool,
    typer.Option("--gauge", help="Gauge factors where that wins: same function, fewer parameters.",
                 rich_help_panel=_PLAN),
]  # fmt: skip
Cache = Annotated[
    str | None,
    typer.Option("--cache", help="Folder that keeps what a search measures; a killed search goes on there.",
                 metavar="FOLDER", rich_help_panel=_PLAN),
]  # fmt: skip
Storage = Annotated[
    str | None,
    typer.Option("--storage", help="Data type of weights and activations on the device, which flash and ram count: "
                 "float32, float16, bfloat16 or int8. Nothing is converted.", metavar="TYPE", rich_help_panel=_PLAN),
]  # fmt: skip
CalibrationImages = Annotated[
    int,
    typer.Option("--calibration-images", help="Unlabelled training images to calibrate on.", min=1,
                 rich_help_panel=_PLAN),
]  # fmt: skip
DataAware = Annotated[
    bool,
    typer.Option("--data-aware/--no-data-aware", help="Errors and factors on the data, or of the weights alone.",
                 rich_help_panel=_PLAN),
]  # fmt: skip
Reconstruct = Annotated[
    str | None,
    typer.Option("--reconstruct", help="How factors are found: weights, data, or sequential (best, slowest).",
                 metavar="HOW", rich_help_panel=_PLAN),
]  # fmt: skip

Epochs = Annotated[
    int,
    typer.Option("--epochs", "--finetune-epochs", help="Passes over the training data; 0 is no fine-tuning.", min=0,
                 rich_help_panel=_TUNE),
]  # fmt: skip
Loss = Annotated[
    str,
    typer.Option("--loss", help="auto, or terms joined by '+': task, distill, layer.", rich_help_panel=_TUNE),
]
Lr = Annotated[
    float | None, typer.Option("--lr", help="Peak learning rate; by default the optimizer's.", rich_help_panel=_TUNE)
]
Optimizer = Annotated[str, typer.Option("--optimizer", help="sgd or adamw.", rich_help_panel=_TUNE)]
FinetuneOption = Annotated[
    list[str] | None,
    typer.Option("--finetune-option", help="Any other field of FineTune, such as target=0.9 or mixed_precision=bf16; "
                 "may be repeated.", metavar="KEY=VALUE", rich_help_panel=_TUNE),
]  # fmt: skip
TrainBatchSize = Annotated[
    int | None,
    typer.Option("--train-batch-size", help="Images per step; as --batch-size by default.", min=1,
                 rich_help_panel=_TUNE),
]  # fmt: skip
LimitTrain = Annotated[
    int | None, typer.Option("--limit-train", help="Train on at most this many images.", min=1, rich_help_panel=_TUNE)
]
MaxSteps = Annotated[
    int | None, typer.Option("--max-steps", help="Stop after so many steps.", min=1, rich_help_panel=_TUNE)
]
Augment = Annotated[
    bool, typer.Option("--augment", help="Random crops, and flips of colour images.", rich_help_panel=_TUNE)
]
Checkpoint = Annotated[
    str | None,
    typer.Option("--checkpoint", help="File or folder of the checkpoint.", metavar="PATH", rich_help_panel=_TUNE),
]
CheckpointEvery = Annotated[
    int | None,
    typer.Option("--checkpoint-every", help="Steps between checkpoints; by default one after each epoch.", min=1,
                 rich_help_panel=_TUNE),
]  # fmt: skip
Restart = Annotated[bool, typer.Option("--restart", help="Train anew, a checkpoint or not.", rich_help_panel=_TUNE)]

Out = Annotated[str, typer.Option("--out", "-o", help="Folder for the artefact and its report.", metavar="FOLDER",
                                  rich_help_panel=_OUT)]  # fmt: skip
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.", rich_help_panel=_OUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no tables and no progress.", rich_help_panel=_OUT)]
