"""A compressed model of transformers is never saved as one that ``from_pretrained`` loads wrongly."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

import rankfold as rf
from rankfold.errors import ConfigError, ModelError
from rankfold.records import Choice

IDS = torch.tensor([[1, 2, 3, 4]])
REFUSED = r"GPT2\w+\.(save_pretrained|push_to_hub) would write weights .* cannot load.*rankfold\.save\(model"


def config() -> GPT2Config:
    return GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=31, n_positions=8, bos_token_id=0, eos_token_id=0)


class Classifier(nn.Module):
    """A model of transformers inside another one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = GPT2Model(config())
        self.second = GPT2Model(config())
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(ids).last_hidden_state[:, -1])


class Mixed(nn.Module):
    """As of huggingface_hub's or diffusers' mixins: a method of this name, and another one that calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def save_pretrained(self, folder: str) -> None:
        torch.save(self.state_dict(), Path(folder) / "weights.pt")

    def push_to_hub(self, name: str) -> None:
        self.save_pretrained(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def plan(name: str) -> rf.Plan:
    return rf.Plan(layers={name: Choice(method="svd", ranks=(3,))})


def compressed() -> GPT2LMHeadModel:
    model: Any = rf.apply(GPT2LMHeadModel(config()).eval(), plan("transformer.h.0.mlp.c_fc"))
    return model


def unpickled(model: nn.Module) -> Any:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("made", [lambda m: m, copy.deepcopy, copy.copy, unpickled, lambda m: rf.gauge(m)])
def test_a_compressed_model_saves_itself_or_refuses(made: Any, tmp_path: Path) -> None:
    original = compressed()
    model = made(original)
    for save in (model.push_to_hub, model.transformer.save_pretrained):
        with pytest.raises(ModelError, match=REFUSED):
            save(str(tmp_path / "folder"))
    for option in ({"state_dict": model.state_dict()}, {"push_to_hub": True}, {"variant": "fp16"}):
        with pytest.raises(ConfigError, match=rf"Leave out {next(iter(option))}\."):
            model.save_pretrained(tmp_path / "folder", safe_serialization=True, **option)
    assert not list(tmp_path.rglob("*.safetensors"))
    with torch.no_grad():
        model.transformer.wte.weight[1] += 1  # of this model, not of the one that it was copied from
    model.save_pretrained(tmp_path / "folder", max_shard_size="5GB")
    torch.testing.assert_close(rf.load_pretrained(tmp_path / "folder")(IDS).logits, model(IDS).logits)


def test_what_the_message_says_works(tmp_path: Path) -> None:
    model = compressed()
    rf.save(model, tmp_path / "small")
    loaded: Any = rf.load(tmp_path / "small", GPT2LMHeadModel(config()).eval())
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
    loaded.save_pretrained(tmp_path / "folder")
    torch.testing.assert_close(rf.load_pretrained(tmp_path / "folder")(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("in_place", [False, True])
def test_in_place_and_with_data(in_place: bool, tmp_path: Path) -> None:
    model: Any = GPT2LMHeadModel(config()).eval()
    data = [{"input_ids": torch.randint(0, 31, (4, 6))}]
    apply = rf.apply_ if in_place else rf.apply
    small: Any = apply(model, plan("transformer.h.0.mlp.c_fc"), data, reconstruct="sequential")
    small.save_pretrained(tmp_path / "folder")
    torch.testing.assert_close(rf.load_pretrained(tmp_path / "folder")(IDS).logits, small(IDS).logits)


def test_the_original_can_be_saved(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(config()).eval()
    small: Any = rf.apply(model, plan("transformer.h.0.mlp.c_fc"))
    model.save_pretrained(tmp_path / "dense")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    assert "save_pretrained" not in vars(model)
    # Other instances of the class are as before, and so is a model in which nothing was factored.
    GPT2LMHeadModel(config()).save_pretrained(tmp_path / "other")
    kept: Any = rf.apply(model, rf.Plan(layers={"transformer.h.0.mlp.c_fc": Choice(reason="by hand")}))
    kept.save_pretrained(tmp_path / "kept")
    assert set(small.state_dict()) != set(model.state_dict())


def test_a_model_inside_another_refuses(tmp_path: Path) -> None:
    small: Any = rf.apply(Classifier().eval(), plan("encoder.h.0.mlp.c_fc"))
    with pytest.raises(ModelError, match=REFUSED):
        small.encoder.save_pretrained(tmp_path / "folder")
    small.second.save_pretrained(tmp_path / "second")  # nothing in it was factored
    holder = nn.ModuleDict({"inner": compressed()})
    inner: Any = holder["inner"]  # a whole compressed model
    inner.save_pretrained(tmp_path / "folder")
    torch.testing.assert_close(rf.load_pretrained(tmp_path / "folder")(IDS).logits, inner(IDS).logits)


def test_other_libraries_with_such_a_method(tmp_path: Path) -> None:
    small: Any = rf.apply(Mixed(), plan("layer"))
    for save in (small.save_pretrained, small.push_to_hub):
        with pytest.raises(ModelError, match=r"Mixed\.(save_pretrained|push_to_hub)"):
            save(str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by peft
def test_an_adapter_on_a_compressed_model(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = compressed()
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    adapted.save_pretrained(tmp_path / "adapter")  # the adapter's weights alone, which is right
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "folder")
    torch.testing.assert_close(rf.load_pretrained(tmp_path / "folder")(IDS).logits, merged(IDS).logits)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by peft
def test_a_compressed_model_with_adapters_refuses(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(GPT2LMHeadModel(config()), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    small: Any = rf.apply(adapted.eval(), plan("base_model.model.transformer.h.0.mlp.c_fc"))
    with pytest.raises(ModelError, match=r"PeftModel\w*\.save_pretrained"):
        small.save_pretrained(tmp_path / "folder")


def test_a_stripped_model_refuses_and_needs_no_rankfold(tmp_path: Path) -> None:
    model: Any = rf.strip(compressed())
    with pytest.raises(ModelError, match="before stripping"):
        model.save_pretrained(tmp_path / "folder")
    with pytest.raises(ModelError, match="before stripping"):
        copy.deepcopy(model).save_pretrained(tmp_path / "folder")
    data = pickle.dumps(model)
    assert b"rankfold" not in data
    again = pickle.loads(data)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    with pytest.raises(KeyError, match="GPT2LMHeadModel was compressed and from_pretrained cannot load it"):
        again.save_pretrained(tmp_path / "folder", safe_serialization=True)


def test_other_models_get_no_such_method() -> None:
    small = rf.apply(nn.Sequential(nn.Linear(16, 16)), plan("0"))
    assert not hasattr(small, "save_pretrained")
    assert not hasattr(small, "push_to_hub")


def test_transformers_is_not_imported() -> None:
    code = "import sys, rankfold; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
