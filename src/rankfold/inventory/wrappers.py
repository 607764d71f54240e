"""Modules that wrap a model, such as DistributedDataParallel and the result of torch.compile.

Functions that train, save or load unwrap them (`unwrap`). Functions that replace layers reject them
(`check_unwrapped`), because a wrapper may keep references to the replaced layers.
"""

from __future__ import annotations

from torch import nn

from rankfold.errors import ModelError

# The attribute that holds the model, by the name of the wrapper's class or base class.
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
# Classes whose parameters are shards of the model's, and what to call them.
SHARDED: dict[str, str] = {"FullyShardedDataParallel": "FullyShardedDataParallel", "FSDPModule": "fully_shard"}


def check_unwrapped(model: nn.Module) -> None:
    """Raise `ModelError` if a model, or a module in it, is a wrapper."""
    for path, module in model.named_modules():
        where = f"the module {path!r}" if path else "the model"
        check_whole(module, where)
        attribute = _inside(module)
        if attribute is not None:
            how = "by torch.compile" if attribute == "_orig_mod" else f"in {type(module).__name__}"
            raise ModelError(
                f"{where} is wrapped {how}. Pass the wrapped model, `model.{attribute}`, and wrap the result."
            )


def check_whole(module: nn.Module, where: str = "the model") -> None:
    """Raise `ModelError` if a module's parameters are sharded over processes."""
    for cls in type(module).__mro__:
        if cls.__name__ in SHARDED:
            raise ModelError(
                f"{where} is sharded by {SHARDED[cls.__name__]}, so no process holds all of its weights. Load the full "
                "weights into a plain instance of the model, pass that instance, and shard the result."
            )


def require_module(model: object) -> nn.Module:
    """Return the model; raise `ModelError` if it is not a module."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module. Got {type(model).__name__} instead.")
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers; raise `ModelError` if it is not a module or is sharded."""
    check_whole(require_module(model))
    attribute = _inside(model)
    return model if attribute is None else unwrap(getattr(model, attribute))


def _inside(module: nn.Module) -> str | None:
    """Return the attribute in which a wrapper holds its model; None if the module is not a wrapper."""
    for cls in type(module).__mro__:
        attribute = WRAPPERS.get(cls.__name__)
        if attribute is not None and isinstance(module._modules.get(attribute), nn.Module):
            return attribute
    return None
