"""Heads of the base's own architecture: every layer between hidden state and logits, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from heard import Heard
from tiers import some_quick

import adapter_export as ae
from adapter_export.errors import AdapterError, UsageError
from adapter_export.torch_backend.torch_runner import TorchRunner

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")

STD, LABELS = 0.2, 32
"""Standard deviation of weights, and a number of labels that equals the width: no shape shows the order of layers."""
SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZE |= {"vocab_size": 60, "max_position_embeddings": 64, "pad_token_id": 0}
ENDS: dict[str, Any] = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
BASES: dict[str, hf.PretrainedConfig] = {
    "modernbert": hf.ModernBertConfig(**SIZE, **ENDS),
    "modernbert_mean": hf.ModernBertConfig(**SIZE, **ENDS, classifier_pooling="mean"),
    "deberta": hf.DebertaV2Config(**SIZE, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "eurobert": hf.EuroBertConfig(**SIZE, num_key_value_heads=4, mask_token_id=3),
    "rembert": hf.RemBertConfig(**SIZE, input_embedding_size=16, output_embedding_size=16),
    "electra": hf.ElectraConfig(**SIZE, embedding_size=16),
    "llama": hf.LlamaConfig(**SIZE | {"pad_token_id": None}, num_key_value_heads=4),
}
TARGETS = {"modernbert": ["Wqkv", "Wo"], "modernbert_mean": ["Wqkv", "Wo"], "deberta": ["intermediate.dense"]}
KINDS = ("SequenceClassification", "TokenClassification")
SAVED = {"modernbert": "head", "modernbert_mean": "head", "deberta": "pooler", "eurobert": "dense"}
"""Modules of the head that PEFT does not save by default."""


def train(name: str, place: Path, *saved: str, kind: str = "SequenceClassification") -> torch.nn.Module:
    """Save a base as `place/base`, and as `place/adapter` a LoRA of it with a head, all weights random."""
    torch.manual_seed(0)
    bare = hf.AutoModel.from_config(BASES[name])
    with torch.no_grad():
        for parameter in bare.parameters():
            is_scale = parameter.dim() == 1 and bool((parameter == 1).all())
            parameter.copy_(STD * torch.randn_like(parameter) + float(is_scale))
    bare.save_pretrained(place / "base")
    return adapted(place, name, saved, kind)


def adapted(place: Path, name: str, saved: tuple[str, ...], kind: str) -> torch.nn.Module:
    whole = getattr(hf, f"AutoModelFor{kind}").from_pretrained(place / "base", num_labels=LABELS)
    task = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}[kind]
    more = {"modules_to_save": list(saved)} if saved else {}
    config = peft.LoraConfig(task_type=task, r=4, lora_alpha=6, target_modules=TARGETS.get(name, ["query", "q_proj"]))
    for key, value in more.items():
        setattr(config, key, value)
    model = peft.get_peft_model(whole, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, STD)
    model.save_pretrained(place / "adapter")
    return model.eval()


def check(model: torch.nn.Module, base: ae.Base, adapter: ae.Adapter, *, pads: bool = True) -> None:
    """Compare with PEFT's own forward; without padding, its rows run one by one."""
    ids = torch.randint(3, 60, (3, 8))
    mask = (torch.arange(8) < torch.tensor([[8], [5], [3]])).long()
    inputs = {"input_ids": torch.where(mask.bool(), ids, 0), "attention_mask": mask}
    inputs |= {record.name: torch.zeros_like(ids) for record in base.inputs if record.name not in inputs}
    with torch.inference_mode():
        if pads:
            expected = model(**inputs).logits.numpy()
        else:
            rows = [ids[None, :length] for ids, length in zip(ids, mask.sum(1).tolist(), strict=True)]
            expected = np.concatenate([model(row).logits.numpy() for row in rows])
    assert adapter.head is not None
    found = TorchRunner(base.torch).run({name: value.numpy() for name, value in inputs.items()}, adapter)
    real = mask.numpy() == 1 if expected.ndim == 3 else ...
    # a few layers in float32
    np.testing.assert_allclose(
        found[adapter.head.output][real], expected[real], rtol=0, atol=2e-5 * max(1.0, float(np.abs(expected).max()))
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("modernbert", KINDS[0]),
        *(
            pytest.param(name, KINDS[0], marks=pytest.mark.extended)
            for name in ("modernbert_mean", "deberta", "eurobert")
        ),
        *(pytest.param(name, KINDS[1], marks=pytest.mark.extended) for name in ("modernbert", "deberta")),
    ],
)
def test_imported_heads_give_the_logits_of_peft(name: str, kind: str, tmp_path: Path) -> None:
    model = train(name, tmp_path, "classifier", SAVED[name], kind=kind)
    base = ae.capture(tmp_path / "base", tmp_path / "model.pt", reporter=Heard())
    check(model, base, ae.import_peft(tmp_path / "adapter", base, name="a", reporter=Heard()))


@pytest.mark.extended
@pytest.mark.parametrize("name", ["rembert", "electra"])
def test_heads_saved_whole_give_the_logits_of_peft(name: str, tmp_path: Path) -> None:
    model = train(name, tmp_path)
    base = ae.capture(tmp_path / "base", tmp_path / "model.pt", reporter=Heard())
    check(model, base, ae.import_peft(tmp_path / "adapter", base, name="a", reporter=Heard()))


def test_decoder_without_a_padding_token_gives_the_logits_of_peft(tmp_path: Path) -> None:
    """Transformers classifies its texts one by one; with the mask of a batch, rows have the same logits."""
    model = train("llama", tmp_path)
    base = ae.capture(tmp_path / "base", tmp_path / "model.pt", bare=True, reporter=Heard())
    check(model, base, ae.import_peft(tmp_path / "adapter", base, name="a", reporter=Heard()), pads=False)


@pytest.mark.parametrize("name", some_quick(["modernbert", "deberta"], "modernbert"))
def test_no_option_drops_a_layer_of_the_head(name: str, tmp_path: Path) -> None:
    """PEFT saves only `classifier`, and the layers before it were random: no description replaces them."""
    train(name, tmp_path)
    base = ae.capture(tmp_path / "base", tmp_path / "model.pt", reporter=Heard())
    for options in ({}, {"pooling": "mean"}, {"pooling": "last", "activation": "tanh"}, {"task": "multi_label"}):
        with pytest.raises((AdapterError, UsageError), match=r"(lacks tensors of|does not match) the head of"):
            ae.import_peft(tmp_path / "adapter", base, name="a", reporter=Heard(), **options)
    adapter = ae.import_peft(tmp_path / "adapter", base, name="a", without_head=True, reporter=Heard())
    assert adapter.head is None


def test_heads_on_a_plain_graph_are_refused(tmp_path: Path) -> None:
    """Without a configuration, a description of a head of transformers is compared with nothing."""
    from adapter_export.torch_backend.base.to_onnx import export_onnx

    train("modernbert", tmp_path, "classifier", "head")
    base = ae.capture(tmp_path / "base", tmp_path / "model.pt", reporter=Heard())
    export_onnx(base.torch, tmp_path / "model.onnx")
    for options in ({}, {"pooling": "first"}, {"pooling": "mean", "activation": "gelu"}):
        with pytest.raises(AdapterError, match="whose computation the base does not show"):
            ae.import_peft(tmp_path / "adapter", tmp_path / "model.onnx", name="a", reporter=Heard(), **options)


@pytest.mark.extended
def test_missing_head_layers_are_read_from_the_base_folder(tmp_path: Path) -> None:
    """A pretrained ModernBERT has `head.dense` and a norm; classifiers start with them, but PEFT does not save them."""
    torch.manual_seed(0)
    pretrained = hf.ModernBertForMaskedLM(BASES["modernbert"])
    with torch.no_grad():
        for parameter in pretrained.parameters():
            parameter.add_(STD * torch.randn_like(parameter))
    pretrained.save_pretrained(tmp_path / "base")
    model = adapted(tmp_path, "modernbert", (), "SequenceClassification")
    base = ae.capture(tmp_path / "base", tmp_path / "model.pt", bare=True, reporter=Heard())
    with pytest.raises(AdapterError, match=r"lacks tensors.*`head\.dense\.weight`.*Pass the folder"):
        ae.import_peft(tmp_path / "adapter", base, name="a", reporter=Heard())
    check(model, base, ae.import_peft(tmp_path / "adapter", tmp_path / "base", name="a", reporter=Heard()))
