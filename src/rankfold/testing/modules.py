"""Checks that a factored layer behaves like any other module: trains, copies, saves, compiles, exports."""

from __future__ import annotations

import copy
import pickle
from unittest import mock

import torch
from torch import Tensor, nn

from rankfold import methods
from rankfold.methods import Method
from rankfold.surgery import Factored
from rankfold.surgery.merged import merged
from rankfold.testing.cases import LayerCase
from rankfold.testing.subject import (
    OUTPUT_TOLERANCE,
    Subject,
    count_macs,
    expect,
    random_factors,
    relative_error,
    sample_ranks,
)


def gradients_reach_every_factor(method: Method, case: LayerCase) -> None:
    """After a backward pass, every parameter and the input have a finite gradient that is not zero."""
    subject = Subject.of(case)
    for ranks in sample_ranks(method, subject.info, count=2):
        module = subject.factored(method, ranks).train()
        x = subject.input.clone().requires_grad_()
        module(x).float().square().sum().backward()
        for name, gradient in [*((n, p.grad) for n, p in module.named_parameters()), ("input", x.grad)]:
            expect(gradient is not None, f"ranks {ranks}: no gradient reaches {name}")
            assert gradient is not None
            expect(bool(gradient.isfinite().all()), f"ranks {ranks}: the gradient of {name} is not finite")
            if subject.input.numel() > 0:
                expect(bool(gradient.any()), f"ranks {ranks}: the gradient of {name} is zero")


def merged_layers_compute_the_same(method: Method, case: LayerCase) -> None:
    """As one dense layer (`rankfold.surgery.merged`), it has the same outputs and gradients, and runs no stage."""
    subject = Subject.of(case)
    ranks, x = sample_ranks(method, subject.info, count=1)[0], subject.input.double()
    module = subject.random(method, ranks, dtype=torch.float64)
    apart = _output_and_gradients(module, x)
    with merged(module) as layers, mock.patch.object(Factored, "forward", side_effect=AssertionError("a stage ran")):
        expect(list(layers) == [""], "the layer is not merged")
        together = _output_and_gradients(module, x)
    expect("forward" not in vars(module), "the layer is still merged afterwards")
    for name, expected in apart.items():
        error = relative_error(together[name], expected)
        expect(error <= OUTPUT_TOLERANCE[torch.float64], f"ranks {ranks}: {name} is off by {error:.2e} if merged")


def _output_and_gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True)
    output = module(x)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    gradients = torch.autograd.grad((output * weights).sum(), [*parameters, x])
    named = zip((*names, "the input"), gradients, strict=True)
    return {"the output": output.detach()} | {f"the gradient of {name}": gradient for name, gradient in named}


def weight_is_differentiable(method: Method, case: LayerCase) -> None:
    """Gradients of a loss on ``weight`` reach every factor; those of the composed factors are correct."""
    subject = Subject.of(case)
    ranks = sample_ranks(method, subject.info, count=1)[0]
    blueprint = method.blueprint(subject.info, ranks)
    factors = tuple(factor.requires_grad_() for factor in random_factors(blueprint))
    torch.autograd.gradcheck(lambda *f: methods.compose(blueprint, subject.info, f), factors, fast_mode=True)
    module = subject.random(method, ranks, dtype=torch.float64)
    module.weight.square().sum().backward()
    for name, parameter in module.named_parameters():
        if parameter is not module.bias:
            expect(parameter.grad is not None and bool(parameter.grad.any()), f"no gradient of .weight reaches {name}")


def no_dense_weight_in_forward(method: Method, case: LayerCase) -> None:
    """The forward pass consists of stock layers and never reads ``weight``."""
    subject = Subject.of(case)
    for ranks in sample_ranks(method, subject.info, count=2):
        module = subject.random(method, ranks)
        failure = AssertionError(f"ranks {ranks}: the forward pass reads .weight")
        unreadable = mock.patch.object(type(module), "weight", new_callable=mock.PropertyMock, side_effect=failure)
        with unreadable, torch.no_grad():
            module(subject.input)
        owners = [m for m in module.modules() if m is not module and list(m.parameters(recurse=False))]
        foreign = {type(m).__name__ for m in owners if not type(m).__module__.startswith(("torch.nn.", "rankfold."))}
        expect(not foreign, f"ranks {ranks}: stages of foreign classes {sorted(foreign)}")


def state_dict_round_trip(method: Method, case: LayerCase) -> None:
    """A fresh module of the same blueprint loads the state dict and computes bitwise the same output."""
    subject = Subject.of(case)
    ranks = sample_ranks(method, subject.info, count=1)[0]
    module = subject.random(method, ranks)
    fresh = subject.built(method, ranks, None)
    fresh.load_state_dict(module.state_dict(), strict=True)
    _same_bits(module, fresh, subject.input, "the reloaded module")


def copies_and_pickles(method: Method, case: LayerCase) -> None:
    """Deep copies and pickles compute bitwise the same output, keep ``info`` and ``choice``, and share no memory."""
    subject = Subject.of(case)
    module = subject.random(method, sample_ranks(method, subject.info, count=1)[0])
    for words, twin in (("the copy", copy.deepcopy(module)), ("the pickle", pickle.loads(pickle.dumps(module)))):
        _same_bits(module, twin, subject.input, words)
        expect(twin.info == module.info and twin.choice == module.choice, f"{words} lost its info or choice")
        mine, its = ({p.data_ptr() for p in m.parameters() if p.numel()} for m in (module, twin))
        expect(not mine & its, f"{words} shares memory with the module")


def autocast_runs(method: Method, case: LayerCase) -> None:
    """Under autocast, the output has the dense layer's data type and approximately its values."""
    subject = Subject.of(case)
    module = subject.factored(method, method.max_ranks(subject.info))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = module(subject.input), subject.module(subject.input)
    expect(actual.dtype == expected.dtype, f"{actual.dtype} under autocast, the dense layer gives {expected.dtype}")
    error, tolerance = relative_error(actual, subject.exact_output()), OUTPUT_TOLERANCE[torch.bfloat16]
    expect(error <= tolerance, f"under autocast the output is off by {error:.1e}, allowed {tolerance:.0e}")


def compiles_whole(method: Method, case: LayerCase) -> None:
    """``torch.compile(fullgraph=True)`` compiles the layer without graph breaks, forward and backward."""
    subject = Subject.of(case)
    module = subject.factored(method, sample_ranks(method, subject.info, count=1)[0]).train()
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    outputs = []
    for run in (module, compiled):
        module.zero_grad()
        y = run(subject.input)
        y.square().sum().backward()
        outputs.append([y.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)])
    for eager, graph in zip(*outputs, strict=True):
        error = relative_error(graph, eager)
        expect(error <= OUTPUT_TOLERANCE[case.dtype], f"compiled and eager results differ by {error:.1e}")
    torch.compiler.reset()


def exports(method: Method, case: LayerCase) -> None:
    """``torch.export`` exports the layer with a dynamic batch size; the program gives the same outputs."""
    subject = Subject.of(case)
    module = subject.factored(method, sample_ranks(method, subject.info, count=1)[0])
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (subject.input,), dynamic_shapes=({0: batch},))
    other = torch.cat([subject.input, 2 * subject.input])
    with torch.no_grad():
        for x in (subject.input, other):
            error = relative_error(program.module()(x), module(x))
            expect(error <= OUTPUT_TOLERANCE[case.dtype], f"batch {len(x)}: exported and eager differ by {error:.1e}")
    expect(count_macs(module, subject.input) > 0, "the layer multiplies nothing")


def _same_bits(module: Factored, twin: nn.Module, x: Tensor, words: str) -> None:
    with torch.no_grad():
        expect(torch.equal(module(x), twin(x)), f"{words} computes something else")
