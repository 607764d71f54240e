"""Trials of channel groups: a narrowed copy must compute what a masked network computes, and cost what is predicted.

A dependency graph made of heuristics can be wrong. Half of the channels of every group are removed from a copy with
random weights, whose output must equal that of the dense copy in which the layers that follow ignore these channels.
Groups for which this fails are found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._tensors import copied, float_tensors, map_tensors
from rankfold.batches import call_model
from rankfold.cost.narrowing import narrowed_inventory
from rankfold.errors import PlanMismatch
from rankfold.inventory import copy_model, evaluating, find_module, inspect, undisturbed
from rankfold.inventory.kinds import conv1d_base, original_class, stock_base
from rankfold.inventory.running import on_device_of
from rankfold.pruning.parts import jumps
from rankfold.records import Axis, ChannelGroup, Narrowing
from rankfold.surgery.narrowing import narrow_

TOLERANCE = 1e-3
"""Largest difference of the outputs of a narrowed and a masked network in single precision, relative to the largest."""

ROUNDS, SMALL = 4, 16
"""Groups of up to `SMALL` channels are tried `ROUNDS` times: half of few channels may be the right ones by chance."""

RUNS = "the model cannot run with fewer channels"
SHAPES = "the shape of the model's output depends on it"
VALUES = "other channels of the model depend on it: the narrowed model does not compute what a masked one computes"
COSTS = "operations outside of layers depend on it, so that its cost cannot be predicted"


class Trial:
    """Trials of the groups of one model on one example input.

    Parameters
    ----------
    model : Module
        The dense model; left unchanged.
    example_input : object
        As for `rankfold.inspect`.
    seed : int
        Of the random weights and of the channels that are removed.
    """

    def __init__(self, model: nn.Module, example_input: Any, *, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.copy = copy_model(model).float().eval()
        self.example = map_tensors(
            lambda t: t.float() if t.is_floating_point() else t, on_device_of(model, example_input)
        )
        with evaluating(model), torch.no_grad():
            self._randomize()
            self.inventory = inspect(self.copy, self.example)
            self.shapes = [t.shape for t in self._outputs(self.copy)]

    def jumps(self) -> bool:
        """Return whether the outputs respond abruptly to slight changes, so that no trial can compare them."""
        with evaluating(self.copy), torch.no_grad():
            return jumps(self.copy, self.example, self.generator)

    def failing(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """Return the groups that cannot be removed channels from, by name, with the reason."""
        failed: dict[str, str] = {}
        with evaluating(self.copy), torch.no_grad():
            for number in range(ROUNDS):
                halves = [group.without(self._half(group)) for group in groups if number == 0 or group.width <= SMALL]
                if number == 0:
                    failed |= _bisect(halves, self._runs_without_values())
                failed |= _bisect([half for half in halves if half.name not in failed], self._computes)
        return failed

    def _half(self, group: ChannelGroup) -> list[int]:
        order = torch.randperm(group.width, generator=self.generator).tolist()
        return order[: group.width // 2]

    @torch.no_grad()
    def _randomize(self) -> None:
        """Give the copy weights of which every one matters; trained ones may be zero."""
        for name, parameter in self.copy.named_parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=self.generator).to(parameter)
            if parameter.ndim > 1:
                fan_in = parameter.numel() // parameter.shape[0]
                parameter.copy_(noise * math.sqrt(2 / max(fan_in, 1)))
            else:
                parameter.copy_(0.1 * noise if name.endswith("bias") else 1 + 0.2 * noise.tanh())
        for module in self.copy.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                variance: Any = module.running_var
                variance.copy_(1 + 0.5 * torch.rand(variance.shape, generator=self.generator).to(variance))

    def _outputs(self, model: nn.Module, example: Any = None) -> list[Tensor]:
        inputs = copied(self.example if example is None else example)
        with undisturbed(model):
            return [t.detach() for t in float_tensors(call_model(model, inputs))]

    def _runs_without_values(self) -> Callable[[Sequence[ChannelGroup]], str | None]:
        """Return a quick trial: whether narrowed layers fit together, on the meta device where the model runs there."""
        try:
            twin = copy_model(self.copy).to("meta")
            example = map_tensors(lambda t: t.to("meta"), self.example)
            with torch.device("meta"):
                meta = [t.shape for t in self._outputs(twin, example)]
        except Exception:  # the model computes with values, such as with .item()
            return lambda groups: None  # noqa: ARG005 - the trial with values follows
        if meta != self.shapes:
            return lambda groups: None  # noqa: ARG005

        def runs(groups: Sequence[ChannelGroup]) -> str | None:
            with torch.device("meta"), _narrowed(twin, groups) as problem:
                if problem:
                    return problem
                try:
                    return None if [t.shape for t in self._outputs(twin, example)] == meta else SHAPES
                except Exception:
                    return RUNS

        return runs

    def _computes(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Return why a narrowed copy does not compute and cost what it should; None if it does."""
        narrowing = Narrowing(tuple(groups))
        with masked(self.copy, narrowing):
            expected = self._outputs(self.copy)
        with _narrowed(self.copy, groups) as problem:
            if problem:
                return problem
            try:
                outputs = self._outputs(self.copy)
                costs = inspect(self.copy, self.example)
            except Exception:  # the model's own code
                return RUNS
        if [t.shape for t in outputs] != [t.shape for t in expected]:
            return SHAPES
        if not all(map(_close, outputs, expected)):
            return VALUES
        predicted = narrowed_inventory(self.inventory, narrowing)
        return None if (predicted.total, predicted.costs) == (costs.total, costs.costs) else COSTS


def _bisect(groups: Sequence[ChannelGroup], trial: Callable[[Sequence[ChannelGroup]], str | None]) -> dict[str, str]:
    """Return a smallest set of groups without which a trial succeeds, with the reasons, as far as halving shows it."""
    reason = trial(groups) if groups else None
    if reason is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    middle = len(groups) // 2
    failed = _bisect(groups[:middle], trial)
    failed |= _bisect(groups[middle:], trial)
    if not failed:  # groups that fail together only
        return {groups[-1].name: reason} | _bisect(groups[:-1], trial)
    return failed | _bisect([group for group in groups if group.name not in failed], trial)


def _close(one: Tensor, other: Tensor) -> bool:
    scale = float(other.abs().max()) if other.numel() else 0.0
    return math.isfinite(scale) and bool(((one - other).abs() <= TOLERANCE * scale).all())


@contextmanager
def _narrowed(model: nn.Module, groups: Sequence[ChannelGroup]) -> Iterator[str | None]:
    """Run the block with a narrowed model; yield why it cannot be narrowed, or None."""
    try:
        restore = narrow_(model, Narrowing(tuple(groups)))
    except PlanMismatch as error:
        yield str(error).rpartition("\n  ")[2]
        return
    try:
        yield None
    finally:
        restore()


@contextmanager
def masked(model: nn.Module, narrowing: Narrowing) -> Iterator[None]:
    """Run the block with a dense model whose layers ignore the channels that a narrowing removes.

    The weights that multiply these channels are zero. Layer norms, whose statistics range over the channels, take the
    remaining ones only.
    """
    removed = narrowing.removed()
    before: list[tuple[Tensor, Tensor]] = []
    hooks = []
    try:
        for name, gone in removed.items():
            module: Any = find_module(model, name)
            if "inputs" in gone:
                before.append((module.weight, module.weight.detach().clone()))
                _ignore_(module, sorted(gone["inputs"]))
            elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
                hooks.append(module.register_forward_hook(_over_remaining(module, name, narrowing)))
        yield
    finally:
        for tensor, value in before:
            tensor.copy_(value)
        for hook in hooks:
            hook.remove()


def _ignore_(module: Any, inputs: list[int]) -> None:
    """Set the weights of some inputs of a layer to zero."""
    index = torch.tensor(inputs, device=module.weight.device)
    if conv1d_base(module) is not None or getattr(module, "transposed", False):
        module.weight.index_fill_(0, index, 0)
    elif getattr(module, "groups", 1) == 1 or stock_base(module) is nn.Linear:
        module.weight.index_fill_(1, index, 0)
    else:
        ins, outs = module.in_channels // module.groups, module.out_channels // module.groups
        for i in inputs:
            module.weight[i // ins * outs : (i // ins + 1) * outs, i % ins] = 0


def _over_remaining(module: Any, name: str, narrowing: Narrowing) -> Callable[..., Tensor]:
    """Return a forward hook that normalizes the remaining channels and returns zeros for the others."""
    twin = copy_model(module)
    width = module.num_channels if isinstance(module, nn.GroupNorm) else module.normalized_shape[0]
    removed = tuple(narrowing.removed()[name]["channels"])
    own = ChannelGroup(name="", width=width, axes=(Axis(name="", side="channels"),), removed=removed)
    narrow_(twin, Narrowing((own,)))
    kept = torch.tensor(own.kept)
    last = isinstance(module, nn.LayerNorm) and original_class(module).forward is nn.LayerNorm.forward

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
        dim = -1 if last or args[0].shape[1] != width else 1
        index = kept.to(output.device)
        return torch.zeros_like(output).index_copy_(dim, index, twin(args[0].index_select(dim, index)))

    return hook
