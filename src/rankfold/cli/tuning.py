"""``rankfold finetune``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from rankfold.cli import _options as o
from rankfold.cli._session import command, session

EXAMPLE = "Example: rankfold finetune small --epochs 10 --lr 0.01 --out tuned"

Epochs = Annotated[
    int,
    typer.Option(
        "--epochs", "--finetune-epochs", help="Passes over the training data.", min=1, rich_help_panel="Fine-tuning"
    ),
]


@command
def finetune(
    artifact: o.Artifact,
    out: o.Out,
    model: o.ModelOption = None,
    weights: o.Weights = None,
    data: o.Data = None,
    trust_source: o.TrustSource = False,
    epochs: Epochs = 5,
    loss: o.Loss = "auto",
    lr: o.Lr = None,
    optimizer: o.Optimizer = "sgd",
    finetune_option: o.FinetuneOption = None,
    train_batch_size: o.TrainBatchSize = None,
    limit_train: o.LimitTrain = None,
    max_steps: o.MaxSteps = None,
    augment: o.Augment = False,
    checkpoint: o.Checkpoint = None,
    checkpoint_every: o.CheckpointEvery = None,
    restart: o.Restart = False,
    num_classes: o.Classes = None,
    input_size: o.InputSize = None,
    batch_size: o.BatchSize = None,
    limit_test: o.LimitTest = None,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a compressed model, with the original as its teacher where its weights are known.

    A run that was killed goes on where it was when the same command is given again: a checkpoint lies in the output
    folder until the tuned model is written.
    """
    import rankfold as rf
    from rankfold.api.compressing import history_rows
    from rankfold.cli._loading import (
        check_name,
        is_trained,
        open_example,
        open_model,
        open_test,
        pick_device,
        pick_metric,
    )
    from rankfold.cli._road import Finished, earlier_report, earlier_values, finish
    from rankfold.cli._source import Source, artifact_source
    from rankfold.cli._tuning import tuning_options, with_data
    from rankfold.cli._writing import artifact_files, check_folder, close
    from rankfold.errors import ConfigError
    from rankfold.surgery import plan_of

    with session(as_json=as_json, quiet=quiet) as printer:
        start = time.perf_counter()
        source = artifact_source(
            artifact, model=model, weights=weights, num_classes=num_classes, data=data, input_size=input_size,
            batch_size=batch_size, limit_test=limit_test, trust=trust_source,
        )  # fmt: skip
        folder = check_folder(out)
        if folder.resolve() == Path(artifact).expanduser().resolve():
            raise ConfigError(f"--out {out!r} is the artefact itself, which is kept as it is. Give another folder.")
        config = tuning_options(
            epochs=epochs, loss=loss, lr=lr, optimizer=optimizer, max_steps=max_steps, checkpoint=checkpoint or out,
            checkpoint_every=checkpoint_every, seed=seed, data=source.data, resume=not restart,
            extra=finetune_option,
        )  # fmt: skip
        place = pick_device(device)
        check_name(source)
        test = open_test(source)
        config = with_data(config, source, batch_size=train_batch_size, limit=limit_train, augment=augment)
        dense = open_model(source, place)
        small = rf.load(artifact, dense)
        example = open_example(source, test)
        metric = pick_metric(test, lambda: dense)
        assert metric is not None
        assert config is not None
        earlier = earlier_report(artifact)
        values = earlier_values(earlier, metric, Source.load(artifact) or source, source)
        if not values:
            values = {"dense": rf.evaluate(dense, metric), "compressed": rf.evaluate(small, metric)}
        teacher = dense if is_trained(source) else None
        if teacher is None:
            printer.say("no weights of the original are known: training without it as the teacher (see --weights)")
        watched = None if config.target is None else metric
        result = rf.finetune_(small, config, teacher=teacher, metric=watched)
        values["tuned"] = rf.evaluate(small, metric)
        if result.resumed_from:
            printer.say(f"resumed from step {result.resumed_from} of {result.steps}")
        rows = earlier.layers if earlier is not None else ()
        report = finish(
            Finished(
                dense=dense,
                small=small,
                plan=plan_of(small),
                inventory=rf.inspect(dense, example),
                example=example,
                metric=metric,
                values=values,
                errors={row.name: row.measured_error for row in rows if row.measured_error is not None},
                history=history_rows(result),
                notes=["measured errors are those before fine-tuning"] if rows else [],
                timings={"finetune": time.perf_counter() - start},
            ),
            source,
            folder,
        )
        if checkpoint is None:
            (folder / "finetune.pt").unlink(missing_ok=True)
        close(printer, "finetune", report, artifact_files(folder), resumed_from=result.resumed_from, steps=result.steps)
