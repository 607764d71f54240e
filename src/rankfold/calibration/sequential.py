"""Sequential asymmetric reconstruction: each layer is fitted to the original's output on its new input.

If factors are computed layer by layer from the original's inputs, they ignore that the preceding layers have changed,
and errors add up. Sequential reconstruction visits the layers in the order of execution. A layer with weight W sees x
in the original network and x' in the compressed one, whose earlier layers are already replaced. First the dense weight
that restores the output is computed, ``W* = argmin_V E ||W x - V x'||^2`` with a small ridge towards W; then W* is
factored in the metric of x'. Layers that stay dense are fitted as well.

Zhang, Zou, He & Sun (2016), "Accelerating very deep convolutional networks for classification and detection", section
3.3 (asymmetric reconstruction), for one factorization and ReLU. This implementation is linear and covers all
factorizations, the mean of the output, and the shortcuts of residual networks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._progress import track
from rankfold._state import extra_state, load_state_, own_state
from rankfold.calibration.flow import Use
from rankfold.calibration.pairs import PairSums
from rankfold.calibration.resuming import Resuming
from rankfold.calibration.second_moments import collect_moments
from rankfold.calibration.sequential_config import Reconstruction, Sequential
from rankfold.calibration.sequential_fit import fit_layer
from rankfold.calibration.sequential_sums import collect_pairs, layer_modules
from rankfold.calibration.sequential_survey import joint_steps, observe_layers, separate_attentions
from rankfold.inventory import Spare, layer_weight
from rankfold.inventory.kinds import reparametrization
from rankfold.inventory.narrowing import narrowed_weight
from rankfold.inventory.padding import COUNTED
from rankfold.records import Plan, narrowed_layer
from rankfold.surgery import Factored, check_plan
from rankfold.surgery.apply import Swap, factor_layer, remember_plan, replace_layers, swap_, tied_paths
from rankfold.surgery.narrowing import narrow_


def reconstruct_sequentially(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    config: Sequential | None = None,
    *,
    suspects: list[str] | None = None,
    spare: Spare | None = None,
) -> Reconstruction:
    """Return a copy of the model with the plan applied and its layers fitted one after the other.

    For each layer, both networks run on every batch up to that layer, from the last layer that was fitted on; see
    `rankfold.calibration.resuming`. Only this layer's sums are in memory, and activations of at most 512 MiB. The model
    runs in evaluation mode without gradients; afterwards it and torch's random state are as before.

    Parameters
    ----------
    model : Module
        The original model; it is left unchanged.
    plan : Plan
        Methods and ranks, and channels to remove: the layers that follow are fitted to restore the original's output.
    batches : iterable
        Batches with or without targets; targets are ignored. It is iterated over many times, so an iterator will not
        do.
    config : Sequential, optional
        Options.
    suspects : list of str, optional
        As for `rankfold.surgery.exchange.exchange_`.
    spare : Spare, optional
        The copy of the model to change.

    Raises
    ------
    PlanMismatch
        If the plan does not fit the model.
    DataError
        If there is no batch, or a layer's input contains NaN or infinity.
    """
    return _Walk(model, plan, batches, config or Sequential(), suspects, spare or Spare(model)).run()


class _Walk:
    """One walk through the layers, in the order of execution."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        batches: Iterable[Any],
        config: Sequential,
        suspects: list[str] | None,
        spare: Spare,
    ) -> None:
        self.given = model
        self.suspects = suspects
        self.removed = plan.narrowing.removed()
        self.before = check_plan(model, plan)
        self.layers = {name: narrowed_layer(layer, self.removed.get(name, {})) for name, layer in self.before.items()}
        self.plan, self.factored = plan, plan.factored
        self.batches = batches
        self.config = config
        work = spare.give()
        narrow_(work, plan.narrowing)
        self.original, self.work = separate_attentions(model, work, self.layers, plan)
        self.errors: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        self.later: list[str] = []

    def run(self) -> Reconstruction:
        uses, elsewhere = observe_layers(self.original, self.layers, self.batches)
        names = [name for name in uses if self._is_fitted(name, elsewhere)]
        steps, resuming = joint_steps(names, uses), Resuming()
        for number, step in enumerate(track(steps, "fitting layers"), 1):
            here = {name: self.layers[name] for name in step}
            later = [self.layers[name] for following in steps[number:] for name in following]
            sums = collect_pairs(
                self.original,
                self.work,
                here,
                uses,
                self.batches,
                self.config,
                self.removed,
                resuming=resuming,
                unsettled=later,
            )
            for name in step:
                self._settle(name, uses[name], sums[name])
        for name in self.factored:
            if name not in uses:
                self._leave(name, "its inputs were not visible on the calibration data")
        self._factor_later()
        return Reconstruction(model=self._finished(), errors=self.errors, notes=self.notes)

    def _is_fitted(self, name: str, elsewhere: set[str]) -> bool:
        """Return whether to fit a layer that is called; if it cannot be fitted, note the reason."""
        layer = self.layers[name]
        reason = None
        if name not in self.factored:
            if not self.config.refit_kept:
                return False
            reason = None if layer.depthwise else layer.skip
            if reason is None and name in elsewhere:
                reason = "its weight is also used outside the layer"
            if reason is None and not self._plain(name, "weight"):
                reason = "its weight is computed"
        if reason is None and self._is_wide(name):
            reason = f"its {layer.group_in:,} input channels are more than max_inputs = {self.config.max_inputs:,}"
        if reason is not None:
            self._leave(name, reason)
        return reason is None

    def _is_wide(self, name: str) -> bool:
        return self.layers[name].group_in > self.config.max_inputs

    def _plain(self, name: str, tensor: str) -> bool:
        """Return whether a tensor of a layer and of those tied to it is a parameter that can be written to."""
        modules = layer_modules(self.work, self.layers[name])
        return all(reparametrization(m, tensor) is None and tensor in m._parameters for m in modules)

    def _settle(self, name: str, use: Use, sums: PairSums | None) -> None:
        """Fit a layer and, if the plan factors it, replace it by its factors."""
        if sums is None:
            self._leave(name, "its calls in the two networks do not correspond")
            return
        if not sums.count:
            self._leave(name, "its inputs were empty")
            return
        layer = self.layers[name]
        shifts = sums.exact and (use.norm is not None or (layer.bias and self._plain(name, "bias")))
        before = layer_weight(self.original, name)
        if name in self.removed:
            before = narrowed_weight(before, self.before[name], self.removed[name])
        fit = fit_layer(sums, before, self.config.ridge, shifts=shifts)
        weight = fit.weight
        with torch.no_grad():
            if name in self.factored:
                module = factor_layer(self.work, layer, self.plan.layers[name], fit.moments, weight=weight)
                self._replace(name, module)
                weight = module.dense_weight()
            else:
                layer_weight(self.work, name).copy_(weight)
        if shifts:
            self._shift(name, use, fit.lacking(weight.detach()))
        if sums.exact:
            self.errors[name] = fit.error(weight.detach())
        if sums.padded and COUNTED not in (self.plan.layers[name].reason or ""):
            self.notes[name] = COUNTED

    @torch.no_grad()
    def _shift(self, name: str, use: Use, by: Tensor) -> None:
        """Add to the mean of a layer's output, through its BatchNorm or its bias."""
        if use.norm is not None:
            norm = self.work.get_submodule(use.norm)
            assert isinstance(norm.running_mean, Tensor)
            norm.running_mean -= by.to(norm.running_mean)
            return
        for bias in {id(m.bias): m.bias for m in layer_modules(self.work, self.layers[name])}.values():
            assert isinstance(bias, Tensor)
            bias += by.to(bias)

    def _leave(self, name: str, reason: str) -> None:
        """Note why a layer is not fitted; it stays unchanged, or is factored at the end."""
        self.notes[name] = f"not fitted: {reason}"
        if name in self.factored:
            self.later.append(name)
            self.notes[name] += "; factored by its weight alone" if self._is_wide(name) else "; factored independently"

    def _factor_later(self) -> None:
        """Factor the layers that could not be fitted, data-aware as usual, and very wide ones by their weights."""
        seen = [self.layers[name] for name in self.later if not self._is_wide(name)]
        moments = {}
        if seen:
            options = {"max_patch": self.config.max_patch, "max_positions": self.config.max_positions}
            moments = collect_moments(self.work if self.removed else self.original, self.batches, seen, **options)
        for name in self.later:
            layer = self.layers[name]
            module = factor_layer(self.work, layer, self.plan.layers[name], moments.get(name))
            self._replace(name, module)

    def _replace(self, name: str, module: Factored) -> None:
        self.work = replace_layers(self.work, self.layers, {name: module}, original=self.given, suspects=self.suspects)

    def _finished(self) -> nn.Module:
        """Return the model; the plan attached to it has the notes."""
        choices = {
            name: replace(choice, reason="; ".join(filter(None, (choice.reason, self.notes.get(name)))) or None)
            if choice.method is not None
            else choice
            for name, choice in self.plan.layers.items()
        }
        provenance = replace(self.plan.provenance, reconstruct="sequential")
        return remember_plan(self.work, replace(self.plan, layers=choices, provenance=provenance))


def adopt_(model: nn.Module, small: nn.Module, plan: Plan) -> nn.Module:
    """Change a model in place into the result of `reconstruct_sequentially` for a copy of it; return it."""
    layers = check_plan(model, plan)
    swaps: list[Swap] = []
    for name in plan.factored:
        layer = layers[name]
        for paths in ((name, *layer.aliases), *tied_paths(model, layer)):
            module = small.get_submodule(paths[0])
            assert isinstance(module, Factored)
            swaps.append((paths, module))
    model = swap_(model, swaps)
    load_state_(model, own_state(small) | extra_state(small))
    return model
