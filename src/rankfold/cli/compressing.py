"""``rankfold compress``."""

from __future__ import annotations

from rankfold.cli import _options as o
from rankfold.cli._session import command, session

EXAMPLE = (
    "Example: rankfold compress resnet20_cifar10 --weights resnet20.safetensors --data cifar10:data/cifar10 "
    '--budget "params<=50%" --out small'
)


@command
def compress(
    model: o.Model,
    out: o.Out = "out",
    weights: o.Weights = None,
    data: o.Data = None,
    budget: o.Budget = None,
    strategy: o.Strategy = o.STRATEGY,
    methods: o.Methods = None,
    option: o.Option = None,
    include: o.Include = None,
    exclude: o.Exclude = None,
    keep_first_last: o.KeepFirstLast = False,
    override: o.Override = None,
    rank_multiple: o.RankMultiple = None,
    gauge: o.Gauge = False,
    storage: o.Storage = None,
    cache: o.Cache = None,
    calibration_images: o.CalibrationImages = 1024,
    data_aware: o.DataAware = True,
    reconstruct: o.Reconstruct = None,
    epochs: o.Epochs = 0,
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
    input_size: o.InputSize = None,
    num_classes: o.Classes = None,
    batch_size: o.BatchSize = None,
    limit_test: o.LimitTest = None,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Compress a network: plan, apply, fine-tune, save, measure the saved model again, report.

    With --data the accuracy on the test images is measured before and after, and the factors are found on unlabelled
    training images. Without it an example input is enough.
    """
    import rankfold as rf
    from rankfold.cli._loading import (
        check_name,
        open_data,
        open_example,
        open_model,
        open_test,
        pick_device,
        pick_metric,
        warn_untrained,
    )
    from rankfold.cli._parsing import planning_options, reconstruction
    from rankfold.cli._road import write
    from rankfold.cli._source import source_of
    from rankfold.cli._tuning import tuning_options, with_data
    from rankfold.cli._writing import artifact_files, check_folder, close

    with session(as_json=as_json, quiet=quiet) as printer:
        source = source_of(
            model, weights=weights, num_classes=num_classes, data=data, input_size=input_size, batch_size=batch_size,
            limit_test=limit_test, seed=seed,
        )  # fmt: skip
        planning = planning_options(
            budget=budget, strategy=strategy, option=option, methods=methods, include=include, exclude=exclude,
            keep_first_last=keep_first_last, override=override, rank_multiple=rank_multiple, gauge=gauge,
            storage=storage,
            data_aware=data_aware, cache=cache, seed=seed,
        )  # fmt: skip
        tuning = tuning_options(
            epochs=epochs, loss=loss, lr=lr, optimizer=optimizer, max_steps=max_steps, checkpoint=checkpoint,
            checkpoint_every=checkpoint_every, seed=seed, data=data, resume=not restart,
            extra=finetune_option,
        )  # fmt: skip
        how = reconstruction(reconstruct, data)
        place = pick_device(device)
        folder = check_folder(out)
        check_name(source)
        warn_untrained(source)
        test = open_test(source)
        tuning = with_data(tuning, source, batch_size=train_batch_size, limit=limit_train, augment=augment)
        calibration = None if data is None else open_data(source, "calibration", limit=calibration_images)
        dense = open_model(source, place)
        result = rf.compress(
            dense,
            open_example(source, test),
            calibration=calibration,
            reconstruct=how,
            evaluate=pick_metric(test, lambda: dense),
            finetune=tuning,
            name=model,
            **planning,
        )
        report = write(result.model, result.report, source, folder)
        close(printer, "compress", report, artifact_files(folder))
