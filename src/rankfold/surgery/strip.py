"""Convert a compressed model to plain torch modules."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch.fx
from torch import nn

from rankfold._config import spelled
from rankfold._turns import in_grad_turn
from rankfold.errors import ConfigError
from rankfold.inventory import copy_model
from rankfold.surgery.apply import PLAN_MARKS, factored_layers, forget_plan_
from rankfold.surgery.carried import carry_attributes_, move_hooks_, report_parameters
from rankfold.surgery.exchange import exchange_
from rankfold.surgery.factored import Bias, Factored, Reshape, settings
from rankfold.surgery.folding import fold_batchnorm_
from rankfold.surgery.gauged import Gauged
from rankfold.surgery.saving import refuse_stripped_

_OWN = frozenset({"blueprint", "info", "choice", *PLAN_MARKS})


@in_grad_turn
def strip(model: nn.Module, *, fold_batchnorm: bool = False, example_input: Any = None) -> nn.Module:
    """Return a copy in which every factored layer is a plain torch module.

    A chain of convolutions or linear layers becomes an ``nn.Sequential`` with the same state-dict keys. A TT-matrix,
    which reshapes between its cores, and gauged factors, which copy channels, become a ``torch.fx.GraphModule`` of the
    same stock layers. Outputs are the same, `rankfold` is not needed to unpickle the copy, and the modules compile with
    ``torch.jit.script``. Code that reads a layer's widths and settings (``out_features``, ``kernel_size``) still finds
    them, but no ``weight``.

    Parameters
    ----------
    model : nn.Module
        A compressed model; left unchanged.
    fold_batchnorm : bool
        Whether to fold each batch norm into the layer before it, a factored layer's last factor, if nothing else reads
        that layer's output. The outputs then differ by rounding. The model must be in eval mode.
    example_input : object
        With `fold_batchnorm`, an input for the model, on which its operations are traced.

    Raises
    ------
    ConfigError
        If there is no example input to fold batch norms with.
    ModelError
        If batch norms are to be folded in training mode, or in a model that ``torch.export`` cannot trace.
    """
    if fold_batchnorm and example_input is None:
        raise ConfigError(f"{spelled('fold_batchnorm', True)} needs {spelled('example_input')}.")
    new = copy_model(model)
    report_parameters(model)
    plain: dict[nn.Module, nn.Module] = {}
    for name, module in reversed(factored_layers(new).items()):  # stages may be factored layers: those first
        module._modules.update({key: plain.get(stage, stage) for key, stage in module.named_children()})
        plain[module] = _plain(module)
        for setting, value in settings(module).items():
            setattr(plain[module], setting, value)
        move_hooks_(module, plain[module])
        carry_attributes_(module, plain[module], without=_OWN)
        if name == "":
            return plain[module]
    exchange_(new, plain, original=model)
    refuse_stripped_(new)
    forget_plan_(new)
    if fold_batchnorm:
        fold_batchnorm_(new, example_input)
    return new


def _plain(module: Factored) -> nn.Module:
    if not any(isinstance(stage, Reshape | Bias | Gauged) for stage in module):
        return nn.Sequential(OrderedDict(module.named_children())).train(module.training)

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 - torch's signature
            return not isinstance(m, Reshape | Bias | Gauged | Factored)

    graph = Tracer().trace(module)
    for node in graph.nodes:
        node.type = None  # torch.fx writes annotations that TorchScript cannot read
    traced = torch.fx.GraphModule(module, graph, "GraphModule")
    return traced.train(module.training)
