"""A folder is enough to load a compressed network of timm or transformers; other loaders refuse it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel

import rankfold as rf
from rankfold.errors import CorruptArtifact, ModelError, PlanMismatch, RankfoldError, UnknownNameError
from rankfold.records import Choice

IDS = {"input_ids": torch.arange(16).view(2, 8), "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3])}
IMAGE = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
FACTORED = "encoder.layer.0.output.dense"
IN_A_NEW_PROCESS = """
import sys, torch, rankfold as rf
model = rf.load_pretrained(sys.argv[1])
inputs = torch.load(sys.argv[2])
with torch.no_grad():
    output = model(**inputs)["last_hidden_state"] if isinstance(inputs, dict) else model(inputs)
torch.save((type(model).__name__, model.training, output), sys.argv[3])
"""


def config() -> BertConfig:
    return BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50,
        max_position_embeddings=16,
    )  # fmt: skip


def small_bert(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    plan = rf.Plan(layers={FACTORED: Choice(method="svd", ranks=(5,))})
    return rf.apply(BertModel(config()).to(dtype).eval(), plan)


def small_resnet(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    net = timm.create_model("resnet10t", num_classes=7, in_chans=1, **options).eval()
    return rf.apply(net, rf.Plan(layers={"layer1.0.conv1": Choice(method="tucker", ranks=(9, 8))}))


def elsewhere(folder: Path, inputs: Any, tmp_path: Path) -> tuple[str, bool, Tensor]:
    torch.save(inputs, tmp_path / "inputs.pt")
    files = [str(folder), str(tmp_path / "inputs.pt"), str(tmp_path / "output.pt")]
    subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS, *files], check=True, capture_output=True)
    return torch.load(tmp_path / "output.pt")


def edit(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.slow
@pytest.mark.parametrize("save", [lambda m, f: m.save_pretrained(f), rf.save])
def test_an_encoder_of_transformers(save: Callable[[Any, Path], object], tmp_path: Path) -> None:
    model = small_bert()
    save(model, tmp_path / "small")
    name, training, output = elsewhere(tmp_path / "small", IDS, tmp_path)
    assert (name, training) == ("BertModel", False)
    torch.testing.assert_close(output, model(**IDS).last_hidden_state.detach(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_resnet_of_timm(tmp_path: Path) -> None:
    model = small_resnet(global_pool="max")
    rf.save(model, tmp_path / "small")
    name, training, output = elsewhere(tmp_path / "small", IMAGE, tmp_path)
    assert (name, training) == ("ResNet", False)
    torch.testing.assert_close(output, model(IMAGE).detach(), rtol=0, atol=1e-6)


def test_random_numbers_and_data_types_are_kept(tmp_path: Path) -> None:
    model = small_bert(torch.bfloat16)
    rf.save(model, tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    loaded: Any = rf.load_pretrained(tmp_path)
    assert torch.equal(torch.rand(1), expected)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded(**IDS).last_hidden_state, model(**IDS).last_hidden_state)


def test_generation_settings_are_kept(tmp_path: Path) -> None:
    net: Any = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=31, n_positions=8))
    net.generation_config.max_new_tokens = 3
    small: Any = rf.apply(net.eval(), rf.Plan(layers={"transformer.h.0.mlp.c_fc": Choice(method="svd", ranks=(3,))}))
    small.save_pretrained(tmp_path)
    assert rf.load_pretrained(tmp_path).generation_config.max_new_tokens == 3


@pytest.mark.parametrize("library", ["transformers", "timm", "torch"])
def test_other_loaders_refuse_the_folder(library: str, tmp_path: Path) -> None:
    if library == "timm":
        rf.save(small_resnet(), tmp_path)
        with pytest.raises(KeyError, match="architecture"):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        net = timm.create_model("resnet10t", num_classes=7, in_chans=1)
        with pytest.raises(RuntimeError, match=r"size mismatch for layer1\.0\.conv1\.weight"):
            net.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=False)
        return
    rf.save(small_bert(), tmp_path)
    if library == "torch":
        with pytest.raises(RuntimeError, match=rf"size mismatch for {FACTORED}\.weight"):
            BertModel(config()).load_state_dict(
                safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=False
            )
        return
    with pytest.raises(ValueError, match="model type `rankfold`"):
        AutoModel.from_pretrained(tmp_path)
    for options in ({}, {"config": config()}):
        for model in (BertModel, BertForSequenceClassification):
            with pytest.raises(RuntimeError, match="mismatch"):
                model.from_pretrained(tmp_path, **options)


def test_without_the_empty_weights_the_wrong_model_would_be_loaded(tmp_path: Path) -> None:
    """The negative control: transformers only reports missing weights."""
    rf.save(small_bert(), tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert tensors.pop(f"{FACTORED}.weight").numel() == 0
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    BertModel.from_pretrained(tmp_path, config=config())


def test_the_file_fits_the_compressed_model(tmp_path: Path) -> None:
    model = small_bert()
    model.save_pretrained(tmp_path)
    again = small_bert()
    with torch.no_grad():
        again.get_submodule(FACTORED)[0].weight.zero_()
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again(**IDS).last_hidden_state, model(**IDS).last_hidden_state)


def test_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    model = small_bert()
    with pytest.raises(RankfoldError, match="holds other files"):
        rf.save(model, tmp_path)
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)  # again, over its own files
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "plan.json",
        "tokenizer.json",
    ]
    BertModel(config()).save_pretrained(tmp_path / "dense")
    before = {p.name: p.read_bytes() for p in (tmp_path / "dense").iterdir()}
    with pytest.raises(RankfoldError, match=r"'config\.json' in it was not written by rankfold"):
        model.save_pretrained(tmp_path / "dense")
    assert {p.name: p.read_bytes() for p in (tmp_path / "dense").iterdir()} == before


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    model = small_bert()
    model.save_pretrained(tmp_path / "folder", is_main_process=False)
    assert not list(tmp_path.iterdir())


def test_the_record_follows_the_artifact(tmp_path: Path) -> None:
    rf.save(small_bert(), tmp_path)
    record = (tmp_path / "config.json").read_text()
    plain = nn.Sequential(nn.Linear(16, 16))
    rf.save(rf.apply(plain, rf.Plan(layers={"0": Choice(method="svd", ranks=(3,))})), tmp_path)
    with pytest.raises(CorruptArtifact, match=r"no record of the network.*rankfold\.load\(folder, model\)"):
        rf.load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(record)
    with pytest.raises(CorruptArtifact, match="describes another artifact"):
        rf.load_pretrained(tmp_path)


def test_bad_records(tmp_path: Path) -> None:
    with pytest.raises(RankfoldError, match="not a local folder. Nothing is downloaded"):
        rf.load_pretrained("bert-base-uncased")
    rf.save(small_bert(), tmp_path)
    for name in ("Trainer", "AutoModel", "BertConfig", "no.such", "torch"):
        edit(tmp_path, name=name)
        with pytest.raises(UnknownNameError, match=name):
            rf.load_pretrained(tmp_path)
    edit(tmp_path, name="BertModel", options={"hidden_size": -1})
    with pytest.raises(RankfoldError, match="transformers cannot build 'BertModel'"):
        rf.load_pretrained(tmp_path)
    for field, value in {"library": "os", "dtype": "load", "options": [], "name": 3, "generation": 1}.items():
        rf.save(small_bert(), tmp_path)
        edit(tmp_path, **{field: value})
        with pytest.raises(CorruptArtifact, match=f"{field!r} cannot be"):
            rf.load_pretrained(tmp_path)


def test_bad_records_of_timm(tmp_path: Path) -> None:
    rf.save(small_resnet(), tmp_path)
    for name in ("hf-hub:timm/resnet18", f"local-dir:{tmp_path}", "resnet10x"):
        edit(tmp_path, name=name)
        with pytest.raises(UnknownNameError):
            rf.load_pretrained(tmp_path)
    for options in ({"checkpoint_path": "x"}, {"num_classes": "7"}, {"pretrained": True}):
        edit(tmp_path, name="resnet10t", options=options)
        with pytest.raises(CorruptArtifact, match="has the option"):
            rf.load_pretrained(tmp_path)
    rf.save(small_resnet(act_layer=nn.SiLU), tmp_path)  # does not show in timm's records
    with pytest.raises(PlanMismatch, match="SiLU"):
        rf.load_pretrained(tmp_path)


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    rf.save(small_bert(), tmp_path)
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('ran')\nclass BertModel: pass\n")
    options = json.loads((tmp_path / "config.json").read_text())["options"]
    edit(
        tmp_path, auto_map={"AutoModel": "modeling_evil.BertModel"}, options={**options, "auto_map": {"AutoModel": "x"}}
    )
    assert type(rf.load_pretrained(tmp_path)) is BertModel


def test_models_are_freed_without_the_garbage_collector() -> None:
    model = small_bert()
    reference = weakref.ref(model)
    save = model.save_pretrained
    gc.collect()  # objects that compress created may refer to the model
    gc.disable()
    try:
        del model
        assert reference() is None
    finally:
        gc.enable()
    with pytest.raises(ModelError, match="Keep it in a variable"):
        save("folder")
