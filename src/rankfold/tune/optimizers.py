"""Optimizers, the learning-rate schedule, and optimizers for compressed models."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rankfold.errors import ConfigError, ModelError
from rankfold.tune.config import FineTune


def build_optimizer(objective: nn.Module, config: FineTune) -> torch.optim.Optimizer:
    """Return the optimizer of a config over its groups, or over all parameters that require gradients.

    Raises
    ------
    ModelError
        If no parameter requires gradients.
    """
    if config.groups is not None:
        groups = [{"weight_decay": config.decay, **group} for group in config.groups(objective)]
        groups = [group | {"params": list(group["params"])} for group in groups]
    else:
        trained = [p for p in objective.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ModelError(
            "no parameter of the model requires gradients, so there is nothing to train. Call "
            "model.requires_grad_(True) before fine-tuning."
        )
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.peak_lr, momentum=config.momentum, nesterov=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.peak_lr)


def lr_at(config: FineTune, step: int, total: int, peak: float | None = None) -> float:
    """Return the learning rate of a step (from 0) out of `total`, for a peak (by default the config's).

    It rises linearly to the peak during the warm-up. It then falls along a cosine that reaches zero one step after the
    last, or stays constant; `plateau_scale` is separate.
    """
    peak = config.peak_lr if peak is None else peak
    warmup = config.warmup if isinstance(config.warmup, int) else round(config.warmup * total)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if config.schedule != "cosine":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def plateau_scale(config: FineTune, values: Sequence[float], *, higher_is_better: bool) -> float:
    """Return the factor of the learning rate after epochs in which the watched quantity had these values.

    ReduceLROnPlateau runs over all values each time. A resumed run therefore needs only the history.
    """
    optimizer = torch.optim.SGD([torch.zeros(())], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max" if higher_is_better else "min", factor=config.plateau_factor,
        patience=config.plateau_patience, eps=0.0,
    )  # fmt: skip
    for value in values:
        schedule.step(value)
    return optimizer.param_groups[0]["lr"]


def rebuild_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, dense: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Return an optimizer like an existing one, over the parameters of a compressed model.

    An optimizer references parameters, not a model: after compression, the old one still updates layers that no longer
    exist, and never trains the new factors.

    Parameters
    ----------
    optimizer : Optimizer
        The dense model's optimizer; left unchanged. Its state (momentum) belongs to its parameters and is not copied.
        Learning-rate schedulers have to be created again.
    model : nn.Module
        The compressed model; its parameters that require gradients are optimized.
    dense : nn.Module or None
        The dense model, whose names map parameters to groups. Needed only if there are several groups and the optimizer
        was built without names.

    Returns
    -------
    Optimizer
        Of the same class, with the same settings in each group. The factors of a layer are in the group of the layer's
        weight, their bias in the group of its bias.

    Raises
    ------
    ConfigError
        If there are several groups without names, or the optimizer's class cannot be constructed from its settings.
    ModelError
        If a parameter has no counterpart in the dense model.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    members: list[list[nn.Parameter]] = [[] for _ in optimizer.param_groups]
    if len(members) == 1:
        members[0] = list(trained.values())
    else:
        homes = _homes(optimizer, dense)
        for name, parameter in trained.items():
            members[_home(name, homes)].append(parameter)
    groups: list[dict[str, Any]] = []
    for old, parameters in zip(optimizer.param_groups, members, strict=True):
        # initial_lr belongs to a scheduler, which would interpret it as a run to be resumed.
        drop = {"params", "param_names", "initial_lr"}
        settings = {k: copy.deepcopy(v) for k, v in old.items() if k not in drop}
        groups.append({"params": parameters, **settings})
    kind = type(optimizer)
    accepted = inspect.signature(kind.__init__).parameters
    defaults = {k: copy.deepcopy(v) for k, v in optimizer.defaults.items() if k in accepted}
    try:
        return kind(groups, **defaults)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{kind.__name__} cannot be rebuilt from its settings {sorted(defaults)}: {error}. "
            "Construct it explicitly over the new model's parameters."
        ) from error


def _homes(optimizer: torch.optim.Optimizer, dense: nn.Module | None) -> dict[str, int]:
    """Return the group of every old parameter, by name."""
    homes: dict[str, int] = {}
    names = {id(p): n for n, p in dense.named_parameters(remove_duplicate=False)} if dense else {}
    for index, group in enumerate(optimizer.param_groups):
        own: list[str] | None = group.get("param_names")
        for position, parameter in enumerate(group["params"]):
            name = own[position] if own else names.get(id(parameter))
            if name is None:
                raise ConfigError(
                    f"the optimizer has {len(optimizer.param_groups)} parameter groups without names, so the groups of "
                    "the new parameters are unknown. Pass dense=model, the model that the optimizer was built for."
                )
            homes[name] = index
    return homes


def _home(name: str, homes: dict[str, int]) -> int:
    """Return the group of a new parameter: that of its name, otherwise that of its layer."""
    if name in homes:
        return homes[name]
    path, _, leaf = name.rpartition(".")
    kind = "bias" if leaf == "bias" else "weight"
    while path:
        for wanted in (f"{path}.{kind}", f"{path}.weight"):
            if wanted in homes:
                return homes[wanted]
        # The projections of an attention replace packed parameters of the attention module.
        inside = [old for old in homes if old.startswith(f"{path}.")]
        groups = {homes[old] for old in inside if old.endswith(kind)}
        if len(groups) == 1:
            return groups.pop()
        if inside:
            break
        path = path.rpartition(".")[0]
    raise ModelError(
        f"the parameter {name!r} has no counterpart among the optimizer's parameters. Was the optimizer "
        "built for another model, or the layer frozen? Construct the optimizer explicitly."
    )
