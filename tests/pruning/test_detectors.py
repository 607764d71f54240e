"""Detectors: widths and ranks of the backbone, whose users select boxes by values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

import rankfold as rf
from rankfold.inventory import inspect
from rankfold.pruning import channel_groups
from rankfold.pruning.groups import ELSEWHERE, LEAVES
from rankfold.surgery.narrowing import narrow_

SIDE = 64
BUDGET = "params(backbone.body.*)<=50%"


def body(**options: Any) -> nn.Module:
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], **options)


def detector(body: nn.Module, widths: tuple[int, ...] = (64, 128, 256)) -> FasterRCNN:
    torch.manual_seed(1)
    backbone = BackboneWithFPN(body, {f"layer{i + 1}": str(i) for i in range(3)}, list(widths), 16)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4)
    return FasterRCNN(
        backbone, num_classes=3, min_size=SIDE, max_size=SIDE, rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_test=200, rpn_post_nms_top_n_test=50,
    ).eval()  # fmt: skip


def frozen() -> FasterRCNN:
    """A detector as torchvision builds it for pretrained weights."""
    torch.manual_seed(0)
    return detector(body(norm_layer=FrozenBatchNorm2d))


def images(seed: int = 0) -> list[Tensor]:
    return [torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))]


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    return frozen()


def trained(model: Any) -> bool:
    """Make a training step; return whether all trainable parameters that got a gradient got a finite one."""
    model.train()
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    sum(model(images(), [target]).values()).backward()
    torch.optim.SGD(model.parameters(), 1e-3).step()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    model.eval()
    return len(grads) > 0 and all(bool(g.isfinite().all()) for g in grads)


def test_groups_of_a_detector(model: FasterRCNN) -> None:
    groups = channel_groups(model, images())
    names = {group.name for group in groups}
    assert {"backbone.body.conv1", "backbone.body.layer2.0.conv1"} <= names
    assert {"rpn.head.conv.0.0", "roi_heads.box_head.fc6"} <= names
    assert groups.fixed["backbone.fpn.layer_blocks.0.0"] == LEAVES
    assert groups.fixed["rpn.head.cls_logits"] == LEAVES
    residual = groups.group("backbone.body.layer2.0.conv2")
    assert "backbone.fpn.inner_blocks.1.0" in {axis.name for axis in residual.axes}


def test_groups_do_not_depend_on_empty_outputs(model: FasterRCNN) -> None:
    """Without a box above the threshold, all outputs are empty, and comparing them would prove nothing."""

    def of_backbone() -> list[Any]:
        return [group for group in channel_groups(model, images()) if group.name.startswith("backbone.")]

    groups, model.roi_heads.score_thresh = of_backbone(), 1.1
    try:
        assert of_backbone() == groups != []
    finally:
        model.roi_heads.score_thresh = 0.05


def test_narrowed_backbone_computes_what_the_masked_one_does(model: FasterRCNN) -> None:
    """Channels that end in zeros can be removed without a trace; others cannot."""
    twin = frozen()
    group = channel_groups(model, images()).group("backbone.body.layer2.0.conv1")
    x = torch.rand(1, 3, SIDE, SIDE)
    conv: Any = twin.get_submodule("backbone.body.layer2.0.conv2")
    with torch.no_grad():
        dense = twin.backbone(x)
        conv.weight[:, :32] = 0
        masked = twin.backbone(x)
        narrow_(twin, rf.records.Narrowing((group.without(range(32)),)))
        narrow = twin.backbone(x)
    assert twin.get_submodule("backbone.body.layer2.0.bn1").weight.shape == (96,)
    for key, value in masked.items():
        torch.testing.assert_close(narrow[key], value, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(masked["1"], dense["1"], atol=1e-3)


@pytest.mark.parametrize(
    "strategy",
    ["norton", rf.CompressNAS(proxy="weight"), rf.CompressNAS(proxy="weight", widths=(0.5,))],
    ids=["norton", "compressnas", "joint"],
)
def test_backbone_within_its_budget(model: FasterRCNN, strategy: Any, tmp_path: Any) -> None:
    x = images()
    result = rf.compress(model, x, budget=BUDGET, strategy=strategy, output=tmp_path / "small")
    count = [sum(p.numel() for p in m.get_submodule("backbone.body").parameters()) for m in (model, result.model)]
    assert count[1] <= 0.5 * count[0]
    assert all(name.startswith("backbone.body.") for name in result.plan.factored)
    loaded = rf.load(tmp_path / "small", frozen(), example_input=x)
    with torch.no_grad():
        ours, theirs = loaded(x)[0], result.model(x)[0]
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert trained(loaded)


def test_calibration_with_lists_of_images(model: FasterRCNN) -> None:
    data = [(images(1) + images(2),), (images(3),)]
    strategy = rf.CompressNAS(taps=["backbone"], proxy="fisher", samples=3)
    options: dict[str, Any] = {
        "budget": BUDGET,
        "include": "backbone.body.*",
        "calibration": data,
        "strategy": strategy,
    }
    result = rf.compress(model, images(), **options)
    assert result.plan.provenance.search["proxy"] != "weight"
    assert trained(result.model)


def test_compressed_classifier_as_backbone(tmp_path: Any) -> None:
    """Widths and weights of a compressed classifier in a detector, saved there and loaded again."""
    torch.manual_seed(0)
    classifier = body().eval()
    x = torch.rand(1, 3, SIDE, SIDE)
    small: Any = rf.compress(classifier, x, strategy=rf.Norton(ratio=0.4, rank=2)).model
    widths = tuple(small.get_submodule(f"layer{i + 1}.0.bn2").num_features for i in range(3))
    assert widths < (64, 128, 256)
    model = detector(small, widths)
    with torch.no_grad():
        wanted = small.layer1(small.maxpool(small.relu(small.bn1(small.conv1(x)))))
        torch.testing.assert_close(model.backbone.body(x)["0"], wanted)
    assert trained(model)
    rf.save(model, tmp_path / "detector")
    loaded: Any = rf.load(tmp_path / "detector", detector(body(), widths))  # which cannot run before
    with torch.no_grad():
        ours, theirs = loaded(images())[0], model(images())[0]
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


class Selecting(nn.Module):
    """Two heads of one backbone; the outputs are sorted by a score, so that they jump."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
        self.other = nn.Linear(6, 16)
        if tied:
            self.other.weight = self.backbone[0].weight  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        values = self.backbone(x)
        close = values.sum(1) * 1e-6 + self.other(x).sum(1).sign() * 0
        return values[(close * 1e9).round().remainder(7).argsort()]


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_others_use_stay(tied: bool) -> None:
    torch.manual_seed(0)
    groups = channel_groups(Selecting(tied=tied), torch.randn(32, 6))
    assert [group.name for group in groups] == (["backbone.2"] if tied else ["backbone.0", "backbone.2"])
    assert ("backbone.0" in groups.fixed and groups.fixed["backbone.0"] == ELSEWHERE) is tied


def test_costs_of_frozen_norms(model: FasterRCNN) -> None:
    """Buffers of frozen norms shrink, in the prediction as in the model."""
    from rankfold.cost.narrowing import narrowed_inventory

    x, twin = torch.rand(1, 3, SIDE, SIDE), frozen().backbone
    inventory = inspect(twin, x)
    narrowing = channel_groups(twin, x).narrowing({"body.layer2.0.conv1": range(32)})
    predicted = narrowed_inventory(inventory, narrowing).total
    narrow_(twin, narrowing)
    assert inspect(twin, x).total == predicted != inventory.total
