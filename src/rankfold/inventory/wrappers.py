"""Modules that only wrap a model, such as DistributedDataParallel and torch.compile's.

Verbs that train, save or load look through them (`unwrap`). Verbs that replace layers refuse them (`check_unwrapped`),
because a wrapper may hold on to the layers that are replaced.
"""

from __future__ import annotations

from torch import nn

from rankfold.errors import ModelError

# By the name of the class (or of one that it inherits from): the attribute that holds the model, and a word for it.
WRAPPERS: dict[str, str] = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "ModelEma": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "EMA": "ema_model",
    "DeepSpeedEngine": "module",
}
# Their parameters are parts of the model's, wherever the model is.
SHARDED: dict[str, str] = {
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
}


def check_unwrapped(model: nn.Module) -> None:
    """Raise `ModelError` if a model, or a module in it, is a wrapper."""
    for path, module in model.named_modules():
        where = f"the module {path!r}" if path else "the model"
        check_whole(module, where)
        attribute = _inside(module)
        if attribute is not None:
            how = "by torch.compile" if attribute == "_orig_mod" else f"in {type(module).__name__}"
            raise ModelError(
                f"{where} is wrapped {how}. Pass the model inside it, `model.{attribute}`, and wrap the result."
            )


def check_whole(module: nn.Module, where: str = "the model") -> None:
    """Raise `ModelError` if a module's parameters are sharded over processes."""
    for cls in type(module).__mro__:
        if cls.__name__ in SHARDED:
            raise ModelError(
                f"{where} is sharded by {SHARDED[cls.__name__]}: no process holds its weights. Load the full weights "
                "into a plain instance of the model, pass that, and shard the result."
            )


def require_module(model: object) -> nn.Module:
    """Return the model; raise `ModelError` if it is something else."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module. Got {type(model).__name__} instead.")
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers such as DistributedDataParallel, torch.compile's and AveragedModel.

    Raises
    ------
    ModelError
        If it is not a module, or a sharded one.
    """
    check_whole(require_module(model))
    attribute = _inside(model)
    return model if attribute is None else unwrap(getattr(model, attribute))


def _inside(module: nn.Module) -> str | None:
    """Return the attribute in which a wrapper holds its model; None if it is not a wrapper."""
    for cls in type(module).__mro__:
        attribute = WRAPPERS.get(cls.__name__)
        if attribute is not None and isinstance(module._modules.get(attribute), nn.Module):
            return attribute
    return None
