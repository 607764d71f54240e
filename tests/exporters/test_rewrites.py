"""Rewritten operations compute the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rankfold.errors import ModelError
from rankfold.exporters import captured
from rankfold.exporters.program import converted
from rankfold.exporters.rewrites import cropped_outputs, volumes_as_images


def random_layer(draw: random.Random, kind: type[nn.Module]) -> nn.Module:
    """Return a 3-D convolution with a kernel that often has one weight along an axis."""
    kernel, stride, padding, dilation = ([draw.choice(sizes) for _ in range(3)] for sizes in SIZES)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": draw.choice([1, 2])}
    if kind is nn.ConvTranspose3d:
        options["output_padding"] = [
            draw.choice([0, 1]) if max(s, d) > 1 else 0 for s, d in zip(stride, dilation, strict=True)
        ]
    elif draw.random() < 0.3:
        options.update(padding="same", stride=1)
    return kind(4, 6, kernel, bias=draw.random() < 0.5, dtype=torch.float64, **options).eval()


SIZES = ([1, 1, 2, 3], [1, 1, 2], [0, 0, 1], [1, 1, 2])
CONVOLUTIONS = {torch.ops.aten.conv3d.default, torch.ops.aten.conv3d.padding, torch.ops.aten.conv_transpose3d.input}


@pytest.mark.parametrize("kind", [nn.Conv3d, nn.ConvTranspose3d])
@pytest.mark.parametrize("number", range(12))
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_convolutions_of_volumes(kind: type[nn.Module], number: int) -> None:
    draw = random.Random(number)
    layer, x = random_layer(draw, kind), torch.randn(3, 4, 7, 6, 8, dtype=torch.float64)
    dynamic = draw.random() < 0.5
    x = x if dynamic or draw.random() < 0.7 else x[0]
    program = captured(layer, x, dynamic_batch=dynamic)
    targets = {node.target for node in program.graph.nodes}
    assert targets & CONVOLUTIONS
    done = volumes_as_images(program)
    assert not {node.target for node in done.graph.nodes} & CONVOLUTIONS
    weights = [node for node in done.graph.nodes if node.name in done.graph_signature.inputs_to_parameters]
    assert all(user.target is not torch.ops.aten.permute.default for node in weights for user in node.users)
    with torch.no_grad():
        for batch in (x, x[:2]) if dynamic else (x,):
            expected = layer(batch)
            assert torch.allclose(done.module()(batch), expected, rtol=1e-12, atol=1e-12)
            assert not torch.allclose(done.module()(batch * 1.01), expected, rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu())


def test_a_layer_that_is_called_twice_keeps_its_weight() -> None:
    net, x = Twice().eval(), torch.randn(2, 4, 5, 6, 7)
    program = captured(net, x)
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    done = volumes_as_images(program)
    with torch.no_grad():
        assert torch.allclose(done.module()(x), net(x), atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("axes", [1, 2])
def test_transposed_convolutions_without_padding(padding: int, extra: int, axes: int) -> None:
    options = {"stride": 3, "padding": padding, "output_padding": extra, "groups": 2, "dilation": 2}
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[axes - 1]
    layer = kind(4, 6, 3, bias=extra > 0, dtype=torch.float64, **options).eval()
    x = torch.randn(2, 4, *(5, 6)[:axes], dtype=torch.float64)
    done = cropped_outputs(captured(layer, x))
    (node,) = [node for node in done.graph.nodes if node.target is torch.ops.aten.convolution.default]
    assert not any([*node.args[4], *node.args[7]])
    with torch.no_grad():
        assert torch.allclose(done.module()(x), layer(x), rtol=1e-12, atol=1e-12)


def refusal(program: torch.export.ExportedProgram, convert: Callable[[torch.export.ExportedProgram], None]) -> str:
    """Return the message about a program that cannot be converted."""
    with pytest.raises(ModelError) as caught:
        converted(program, "Somewhere", convert)
    return str(caught.value)


def test_the_layer_that_cannot_be_converted_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))).eval()
    x = torch.randn(2, 4, 7, 8)
    program = captured(net, x)

    def convert(program: torch.export.ExportedProgram) -> None:
        if any(2 in node.args[6:] for node in program.graph.nodes):
            raise ValueError("no groups")

    with pytest.raises(ValueError, match="no groups"):
        convert(program)
    message = refusal(program, convert)
    assert message.startswith("layer '2.0' cannot be exported to Somewhere, which raised ValueError: no groups")
    padded = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")).eval()

    def without_pads(program: torch.export.ExportedProgram) -> None:
        if any(node.target is torch.ops.aten.pad.default for node in program.graph.nodes):
            raise ValueError("no pads")

    message = refusal(captured(padded, x), without_pads)
    assert message.startswith("layer '1' cannot be exported")

    def single(program: torch.export.ExportedProgram) -> None:
        if sum(node.target is torch.ops.aten.conv2d.default for node in program.graph.nodes) > 1:
            raise ValueError("no batch")

    message = refusal(program, single)
    assert message.startswith("the model cannot be exported to Somewhere, which raised ValueError: no batch")


def test_programs_without_volumes_stay_the_same() -> None:
    program = captured(nn.Conv2d(4, 4, 3).eval(), torch.randn(2, 4, 5, 6))
    assert volumes_as_images(program) is program
