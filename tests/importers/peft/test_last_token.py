"""PEFT's classifiers on decoders, which read the last token: the logits of PEFT itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from heard import Heard
from small_models import small
from transformers import AutoModelForSequenceClassification

import adapter_export as ae
from adapter_export.errors import AdapterError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # between PEFT and transformers

PADDING = 0
CASES = {
    "Qwen3": ({"num_key_value_heads": 2, "head_dim": 8}, ["q_proj", "v_proj", "down_proj"]),
    "Llama": ({}, ["q_proj", "o_proj"]),
    "GPT2": ({}, ["c_attn"]),
}


def saved(name: str, place: Path, **more: int) -> torch.nn.Module:
    """Save a decoder as `place/base`, and as `place/adapter` a LoRA of it with a head, all weights random."""
    options, modules = CASES[name]
    small(name, **{**options, **more, "pad_token_id": PADDING}).save_pretrained(place / "base")
    whole = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=3)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=6, target_modules=modules, fan_in_fan_out=name == "GPT2"
    )
    model = peft.get_peft_model(whole, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2)
    model.save_pretrained(place / "adapter")
    return model.eval()


@pytest.mark.extended
@pytest.mark.parametrize("name", CASES)
def test_last_token_heads_give_the_logits_of_peft(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = saved(name, tmp_path)
    base = ae.capture(tmp_path / "base", tmp_path / "model.pt")
    adapter = ae.import_peft(tmp_path / "adapter", base, labels=["a", "b", "c"], task="multi_label", reporter=Heard())
    assert adapter.head is not None
    assert [node.op for node in adapter.head.graph.nodes] == ["last_token", "linear"]
    bundle = ae.build(base, [adapter], tmp_path / "bundle", variants=("slots", "bank"))
    ids = torch.randint(2, 98, (4, 7))
    mask = (torch.arange(7) < torch.tensor([[7], [5], [3], [1]])).long()
    inputs = {"input_ids": torch.where(mask.bool(), ids, PADDING), "attention_mask": mask}
    with torch.inference_mode():
        expected = model(**inputs).logits.numpy()
    found = bundle.session().run({key: value.numpy() for key, value in inputs.items()}, adapter.name)["logits"]
    assert np.abs(expected).max() > 0.1
    # one layer and a head in float32
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.extended
def test_tokenizers_that_end_texts_with_padding_are_noted_or_refused(minilm_folder: Path, tmp_path: Path) -> None:
    """Refused where the base says which token that is; else a note says what to look at."""
    saved("Llama", tmp_path, vocab_size=110)
    shutil.copy(minilm_folder / "tokenizer.json", tmp_path / "base")
    choices = {"labels": ["a", "b", "c"], "task": "multi_label"}
    heard = Heard()
    ae.import_peft(tmp_path / "adapter", tmp_path / "base", reporter=heard, **choices)
    assert not [note for note in heard.notes if "pad_token_id" in note]
    archive = ae.capture(tmp_path / "base", tmp_path / "model.pt")
    ae.import_peft(tmp_path / "adapter", archive, reporter=heard, **choices)
    assert [note for note in heard.notes if "ends texts with token 102" in note]
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": 102}))  # [SEP]
    with pytest.raises(AdapterError, match=r"skips padding.*found `pad_token_id` 102"):
        ae.import_peft(tmp_path / "adapter", tmp_path / "base", **choices)


@pytest.mark.extended
def test_a_base_with_a_cache_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """Its mask covers past tokens, so that `build` would refuse the head later."""
    saved("Llama", tmp_path)
    small("Llama", "ForCausalLM", pad_token_id=PADDING).save_pretrained(tmp_path / "whole")
    choices = {"labels": ["a", "b", "c"], "task": "multi_label", "reporter": Heard()}
    with pytest.raises(AdapterError, match=r"captured with its cache.*`bare=True`.*`without_head=True`"):
        ae.import_peft(tmp_path / "adapter", tmp_path / "whole", **choices)
    base = ae.capture(tmp_path / "whole", tmp_path / "bare.pt", bare=True, reporter=Heard())
    assert ae.import_peft(tmp_path / "adapter", base, **choices).head is not None
