"""Sequential asymmetric reconstruction: each layer is fitted to the original's output on what it is given now.

Factors that are found layer by layer from the original's inputs do not know that their predecessors have changed, and
errors add up. Here the layers are walked in the order of execution. A layer with weight W sees x in the original
network and x' in the compressed one, whose layers before it are replaced already. First the dense weight that brings
the output back is found, ``W* = argmin E ||W x - V x'||^2`` with a little ridge towards W; then W* is factored in the
metric of x'. Layers that stay dense are fitted, too.

Zhang, Zou, He & Sun (2016), "Accelerating very deep convolutional networks for classification and detection", section
3.3 (asymmetric reconstruction), there for one factorization and ReLU; here linear, for all of them, with the mean, and
with the shortcuts of residual networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._batches import evaluating, iterate, model_device, split_batch, to_device
from rankfold._config import is_integer, is_number, require
from rankfold._progress import track
from rankfold.calibration.flow import Use, observe
from rankfold.calibration.pairs import PairSums
from rankfold.calibration.second_moments import collect_moments
from rankfold.calibration.taps import Tap, run_to_taps
from rankfold.factor.moments import Moments
from rankfold.factor.refit import PairMoments, choose_ridge, ridge_correction
from rankfold.inventory import fused_attention_off, layer_weight, run_batch
from rankfold.inventory.kinds import is_attention, reparametrization
from rankfold.inventory.static import scan
from rankfold.inventory.watch import Usage
from rankfold.methods import to_canonical
from rankfold.records import LayerInfo, Plan
from rankfold.surgery import Factored, check_plan, copy_model
from rankfold.surgery.apply import factor_layer, remember_plan, replace_layer
from rankfold.surgery.attention import separate_attention_

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""What cross-validation chooses from."""

EASED = 0.25
"""The share of the chosen ridge that is used. It was chosen for half the data, and for one layer's error alone; with a
quarter of it the outputs of a ResNet-20 came closer to the original's with 256 and 1,024 images (relative squared error
0.173 against 0.180, and 0.238 against 0.248), and as close with 64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialConfig:
    """Options of sequential reconstruction.

    Parameters
    ----------
    ridge : float or None
        Pull of the fitted weights towards the original ones, as a share of the mean second moment of the layer's input.
        None chooses it for each layer by twofold cross-validation: little with much data, much with little.
    refit_kept : bool
        Fit the layers that the plan keeps, too: their weights change, their shapes do not.
    shortcuts : bool
        Where a layer's output is added to something that is final already (the shortcut of a residual block), let the
        layer make up for the error of that, too.
    max_patch, max_positions : int
        As for `collect_moments`: the largest patch moment, and the positions taken of each sample.
    """

    ridge: float | None = None
    refit_kept: bool = True
    shortcuts: bool = True
    max_patch: int = 2304
    max_positions: int = 1024

    def __post_init__(self) -> None:
        fine = self.ridge is None or (is_number(self.ridge) and 0 < self.ridge < float("inf"))
        require(fine, "ridge", self.ridge, "a number above 0, or None")
        for option in ("refit_kept", "shortcuts"):
            require(isinstance(getattr(self, option), bool), option, getattr(self, option), "True or False")
        for option, least in (("max_patch", 0), ("max_positions", 1)):
            value = getattr(self, option)
            require(is_integer(value) and value >= least, option, value, f"an integer >= {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """What `reconstruct_sequentially` returns.

    Parameters
    ----------
    model : Module
        The compressed model.
    errors : dict of str to float
        Relative error of each fitted layer's output, 0..1, given what it gets in the compressed network, against what
        it was fitted to.
    notes : dict of str to str
        Why layers were not fitted.
    """

    model: nn.Module = field(repr=False)
    errors: dict[str, float]
    notes: dict[str, str]


def reconstruct_sequentially(
    model: nn.Module, plan: Plan, batches: Iterable[Any], config: SequentialConfig | None = None
) -> Reconstruction:
    """Return a copy of the model with the plan applied, its layers fitted one after the other.

    Both networks run on every batch once for each layer, as far as that layer; only this layer's sums are in memory.
    The model runs in evaluation mode without gradients; afterwards it and torch's random state are as before.

    Parameters
    ----------
    model : Module
        The original; left untouched.
    plan : Plan
        Methods and ranks.
    batches : iterable
        Batches with or without targets, iterated over many times, so no iterator; targets are not used.
    config : SequentialConfig, optional
        Options.

    Raises
    ------
    PlanMismatch
        If the plan does not fit the model.
    DataError
        If there is no batch, or a layer's input holds NaN or infinity.
    """
    return _Walk(model, plan, batches, config or SequentialConfig()).run()


class _Walk:
    """One walk through the layers."""

    def __init__(self, model: nn.Module, plan: Plan, batches: Iterable[Any], config: SequentialConfig) -> None:
        self.layers = check_plan(model, plan)
        self.plan = plan
        self.batches = batches
        self.config = config
        self.work = copy_model(model)
        self.original = model
        self._separate_attentions()
        self.errors: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        self.later: list[str] = []

    def run(self) -> Reconstruction:
        uses, elsewhere = self._observe()
        names = [name for name in uses if self._is_fitted(name, elsewhere)]
        for step in track(_steps(names, uses), "fitting layers"):
            sums = self._collect(step, uses)
            for name in step:
                self._settle(name, uses[name], sums[name])
        for name in self.plan.factored:
            if name not in names:
                self._postpone(name, "its inputs were not seen on the calibration data")
        self._factor_later()
        return Reconstruction(model=self._finished(), errors=self.errors, notes=self.notes)

    def _separate_attentions(self) -> None:
        """Give every attention that is to be factored layers of its own, in both networks: hooks see those."""
        paths = []
        for name in self.plan.factored:
            for path in (name, *self.layers[name].aliases, *self.layers[name].ties):
                parent = path.rpartition(".")[0]
                if parent not in paths and is_attention(_module(self.work, parent)):
                    paths.append(parent)
        if paths:
            self.original = copy_model(self.original)
        for path in paths:
            twins = [separate_attention_(model, path) for model in (self.work, self.original)]
            if path == "":
                self.work, self.original = twins

    def _modules(self, model: nn.Module, name: str) -> list[nn.Module]:
        """Return the modules that compute with a layer's weight; none if they cannot be seen."""
        found: dict[int, nn.Module] = {}
        for path in (name, *self.layers[name].ties):
            module = _module(model, path)
            if module is None or is_attention(_module(model, path.rpartition(".")[0])):
                return []
            found[id(module)] = module
        return list(found.values())

    def _observe(self) -> tuple[dict[str, Use], set[str]]:
        """Run the original on the first batch: how it uses each layer, and which weights have other readers."""
        entries = scan(self.original).entries
        usage = Usage(entries)
        modules = {name: found for name in self.layers if (found := self._modules(self.original, name))}

        with evaluating(self.original), fused_attention_off():
            first = split_batch(next(iterate(self.batches, "calibration")))[0]
            run = partial(
                run_batch, self.original, to_device(first, model_device(self.original)), "calibration batch 1"
            )
            uses = observe(self.original, modules, run)
            with usage.watching():
                run()
        return uses, {entries[i].info.name for i in usage.used_elsewhere}

    def _is_fitted(self, name: str, elsewhere: set[str]) -> bool:
        """Whether a layer that is called is to be fitted; a kept one that is not is noted."""
        layer = self.layers[name]
        if name in self.plan.factored:
            return True
        if not self.config.refit_kept:
            return False
        reason = None if layer.depthwise else layer.skip
        if reason is None and name in elsewhere:
            reason = "its weight is also used outside the layer"
        if reason is None and not self._plain(name, "weight"):
            reason = "its weight is computed"
        if reason is not None:
            self.notes[name] = f"not fitted: {reason}"
        return reason is None

    def _plain(self, name: str, tensor: str) -> bool:
        """Whether a tensor of a layer, and of those tied to it, is a parameter that can be written to."""
        modules = self._modules(self.work, name)
        return all(reparametrization(m, tensor) is None and tensor in m._parameters for m in modules)

    def _collect(self, step: Sequence[str], uses: Mapping[str, Use]) -> dict[str, PairSums | None]:
        """Run both networks over the data; None for a layer whose calls in the two cannot be paired."""
        config = self.config
        sums: dict[str, PairSums | None] = {
            name: PairSums(self.layers[name], max_patch=config.max_patch, max_positions=config.max_positions)
            for name in step
        }
        with evaluating(self.original), evaluating(self.work), fused_attention_off():
            items = track(iterate(self.batches, "calibration"), f"layer {step[0]}", length_hint(self.batches) or None)
            for number, batch in enumerate(items, 1):
                taps = {}
                for model in (self.original, self.work):
                    inputs = to_device(split_batch(batch)[0], model_device(model))
                    here = {name: self._tap(model, name, uses[name], sums[name]) for name in step}
                    run_to_taps(model, inputs, list(here.values()), f"calibration batch {number}")
                    taps[model is self.work] = here
                for name in step:
                    total = sums[name]
                    if total is not None and not _add(total, taps[False][name], taps[True][name]):
                        sums[name] = None
        return sums

    def _tap(self, model: nn.Module, name: str, use: Use, sums: PairSums | None) -> Tap:
        exact = sums is not None and sums.exact
        return Tap(
            modules=self._modules(model, name),
            outputs=exact,
            calls=use.calls,
            joins=use.joins and exact and self.config.shortcuts,
            norm=None if use.norm is None else model.get_submodule(use.norm),
        )

    def _settle(self, name: str, use: Use, sums: PairSums | None) -> None:
        """Fit a layer and, if it is planned, replace it by its factors."""
        layer, choice = self.layers[name], self.plan.layers.get(name)
        factored = choice is not None and choice.method is not None
        if sums is None or not sums.count:
            why = "its calls in the two networks do not correspond" if sums is None else "it was given nothing"
            if factored:
                self._postpone(name, why)
            else:
                self.notes[name] = f"not fitted: {why}"
            return
        pairs, folds = sums.moments(), sums.folds()
        shifts = sums.exact and (use.norm is not None or (layer.bias and self._plain(name, "bias")))
        if shifts:  # what the mean lacks, bias or BatchNorm will add
            pairs, folds = pairs.centred(), [fold.centred() for fold in folds]
        ridge = EASED * choose_ridge(folds, RIDGES) if self.config.ridge is None else self.config.ridge
        dense = layer_weight(self.original, name)
        before = to_canonical(dense, layer).to(pairs.second)
        new = _from_canonical(_corrected(before, ridge_correction(pairs, ridge), exact=sums.exact), layer).to(dense)
        if choice is not None and factored:
            module = factor_layer(self.work, layer, choice, _as_moments(pairs, layer, exact=sums.exact), weight=new)
            self.work = replace_layer(self.work, layer, module)
            with torch.no_grad():
                new = module.weight.detach()
        else:
            with torch.no_grad():
                layer_weight(self.work, name).copy_(new)
        if not sums.exact:
            return
        change = (to_canonical(new, layer).to(pairs.second) - before).flatten(2)
        if shifts:
            self._shift(name, use, (pairs.lacking - (change @ pairs.given.unsqueeze(-1)).squeeze(-1)).flatten())
        total = sums.total / sums.count
        self.errors[name] = (pairs.residual(change) / total) ** 0.5 if total > 0 else 0.0

    @torch.no_grad()
    def _shift(self, name: str, use: Use, by: Tensor) -> None:
        """Add to the mean of a layer's output."""
        if use.norm is not None:
            norm = self.work.get_submodule(use.norm)
            assert isinstance(norm.running_mean, Tensor)
            norm.running_mean -= by.to(norm.running_mean)
            return
        for bias in {id(m.bias): m.bias for m in self._modules(self.work, name)}.values():
            assert isinstance(bias, Tensor)
            bias += by.to(bias)

    def _postpone(self, name: str, reason: str) -> None:
        self.later.append(name)
        self.notes[name] = f"not fitted: {reason}; factored on its own"

    def _factor_later(self) -> None:
        """Factor what could not be fitted as plain data-aware factorization would."""
        if not self.later:
            return
        moments = collect_moments(
            self.original, self.batches, [self.layers[name] for name in self.later],
            max_patch=self.config.max_patch, max_positions=self.config.max_positions,
        )  # fmt: skip
        for name in self.later:
            layer = self.layers[name]
            module = factor_layer(self.work, layer, self.plan.layers[name], moments.get(name))
            self.work = replace_layer(self.work, layer, module)

    def _finished(self) -> nn.Module:
        """Return the model, which remembers its plan with the notes."""
        choices = {
            name: replace(choice, reason="; ".join(filter(None, (choice.reason, self.notes.get(name)))) or None)
            if choice.method is not None
            else choice
            for name, choice in self.plan.layers.items()
        }
        provenance = replace(self.plan.provenance, reconstruct="sequential")
        return remember_plan(self.work, replace(self.plan, layers=choices, provenance=provenance))


def adopt_(model: nn.Module, small: nn.Module, plan: Plan) -> nn.Module:
    """Change a model in place into what `reconstruct_sequentially` made of a copy of it; return it."""
    layers = check_plan(model, plan)
    for name in plan.factored:
        module = small.get_submodule(name)
        assert isinstance(module, Factored)
        model = replace_layer(model, layers[name], module)
    model.load_state_dict(small.state_dict())
    return model


def _steps(names: Sequence[str], uses: Mapping[str, Use]) -> list[list[str]]:
    """Join layers that follow each other on the same input: one pass serves them all."""
    steps: list[list[str]] = []
    for name in names:
        use = uses[name]
        if steps and use.beside == steps[-1][-1] and use.calls == 1 and not use.joins:
            steps[-1].append(name)
        else:
            steps.append([name])
    return steps


def _add(sums: PairSums, original: Tap, small: Tap) -> bool:
    """Add what the layer's calls lacked on one batch; return False if they do not correspond."""
    if len(original.taken) != len(small.taken):
        return False
    for wanted, (given, *found) in zip(original.taken, small.taken, strict=True):
        target = wanted[-1]
        if original.other is not None and small.other is not None:
            target = target + _lost(original, small.other)
        if not sums.add(target, found[0] if found else given, given):
            return False
    return True


def _lost(original: Tap, other: Tensor) -> Tensor:
    """Return what the other term of a sum has lost, as the layer's output is to make up for it."""
    assert original.other is not None
    lost = original.other - other.to(original.other.device)
    norm: Any = original.norm
    if norm is None:
        return lost
    gain = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    # A channel that the BatchNorm nearly shuts could not carry it.
    open_ = gain.abs() > 0.05 * gain.abs().mean()
    inverse = torch.where(open_, 1 / gain, torch.zeros_like(gain))
    return lost * inverse.reshape(-1, *(1,) * (lost.ndim - 2)).to(lost)


def _corrected(weight: Tensor, correction: Tensor, *, exact: bool) -> Tensor:
    """Return the fitted canonical weight ``(groups, o, i, *kernel)``."""
    if exact:
        return weight + correction.reshape(weight.shape)
    # The channels are mapped back to the original's as well as may be, whatever the weight.
    flat = weight.flatten(3)
    return (flat + torch.einsum("goik,gij->gojk", flat, correction)).reshape(weight.shape)


def _as_moments(pairs: PairMoments, layer: LayerInfo, *, exact: bool) -> Moments:
    """Return the moments of the input in the compressed network, as factorizations take them."""
    if not exact or layer.kernel_numel == 1:
        return Moments(channel=pairs.second, patch=None, count=pairs.count)
    i, k = layer.group_in, layer.kernel_numel
    channel = pairs.second.reshape(-1, i, k, i, k).diagonal(dim1=2, dim2=4).mean(-1)
    return Moments(channel=channel, patch=pairs.second, count=pairs.count)


def _from_canonical(weight: Tensor, layer: LayerInfo) -> Tensor:
    """Return ``(groups, o, i, *kernel)`` in torch's layout."""
    if layer.transposed:
        weight = weight.movedim(1, 2)
    return weight.reshape(layer.weight_shape)


def _module(model: nn.Module, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
