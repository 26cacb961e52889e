"""Rerankers that answer with two tokens: the scores of transformers and of sentence-transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heard import Heard
from small_models import small
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import adapter_export as ae
from adapter_export.errors import AdapterError, BaseModelError, RequestError, UsageError
from adapter_export.format.manifest import GRAPH_VARIANTS
from adapter_export.graph.adapter import BASE_HEAD
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.answers import Score
from adapter_export.text import Pair

PAIRS = [
    Pair("who is it?", "it is me."),
    Pair("a", "a long text about a good thing {pair} {text}"),
    Pair("what is bad?\n", "bad"),
]
PROMPT = "judge: yes or no?\nquery: {text}\ndocument: {pair}\nanswer:\n\n"
QWEN3 = {"vocab_size": 30522, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def folder(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3 with a language head, and a tokenizer that pads on the left."""
    place = tmp_path_factory.mktemp("reranker")
    small("Qwen3", "ForCausalLM", **QWEN3).save_pretrained(place)
    shutil.copy(minilm_folder / "tokenizer.json", place)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "padding_side": "left"}
    (place / "tokenizer_config.json").write_text(
        json.dumps({**config, "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 64})
    )
    return place


def scores(bundle: ae.Bundle, name: str = BASE_HEAD) -> np.ndarray:
    answers = bundle.texts(bundle.session()).answer(PAIRS, adapter=name)
    return np.array([one.answer.score for one in answers if isinstance(one.answer, Score)])


def by_softmax(folder: Path, model: Any, texts: list[Any]) -> np.ndarray:
    """Return the probability of `yes` against `no` at the last token, as in the model card of Qwen3-Reranker."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.inference_mode():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, -1]
    return torch.stack([logits[:, no], logits[:, yes]], 1).softmax(1)[:, 1].numpy()


@pytest.mark.extended
def test_prompted_reranker_gives_the_scores_of_transformers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT)
    base = ae.capture(folder, tmp_path / "model.pt", reranker_tokens=["yes", "no"], prompt=tmp_path / "prompt.txt")
    assert base.base_head is not None
    assert base.base_head.head is not None
    assert [node.op for node in base.base_head.head.graph.nodes] == ["last_token", "linear"]
    data = tmp_path / "train.jsonl"
    rows = [
        {"text": f"what is {at}?", "pair": name, "score": name == "good"} for at in range(6) for name in ("good", "x")
    ]
    data.write_text("\n".join(json.dumps({**row, "score": int(row["score"])}) for row in rows))
    options: dict[str, Any] = {"kind": "lora", "rank": 2, "epochs": 1, "init": "small_normal", "learning_rate": 0.1}
    columns = {"pair": "pair", "label": "score", "max_tokens": 60}
    mine = ae.train(base, data, tmp_path / "mine", task="ranking", head="base", **columns, **options)
    assert mine.head is not None
    assert mine.head.task is not None
    assert mine.head.task.template == PROMPT
    bundle = ae.build(base, [mine], tmp_path / "bundle", variants=GRAPH_VARIANTS)
    first, between, last = PROMPT.replace("{pair}", "{text}").split("{text}")
    texts = [f"{first}{one.first}{between}{one.second}{last}" for one in PAIRS]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    # probabilities of one layer in float32
    assert np.abs(scores(bundle) - by_softmax(folder, model, texts)).max() < 1e-5
    bare = {name: value for name, value in mine.weights.items() if not name.startswith("head.")}
    with ae.attach(model.model, replace(mine, head=None, weights=bare)), torch.inference_mode():
        tokens = PreTrainedTokenizerFast.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        logits = model.model(**tokens).last_hidden_state[:, -1].numpy() @ mine.weights["head.classifier.weight"]
    assert np.abs(scores(bundle, "mine") - 1 / (1 + np.exp(-logits[:, 0]))).max() < 1e-5
    assert np.abs(scores(bundle) - scores(bundle, "mine")).max() > 1e-3
    with pytest.raises(RequestError, match="more tokens than are taken, and a prompt is not truncated"):
        bundle.texts(bundle.session()).answer([Pair("a " * 80, "b")], adapter=BASE_HEAD)


def cross_encoder(folder: Path, place: Path, *, template: str = "") -> Path:
    """Write a folder in the format of sentence-transformers for a cross-encoder that is a language model."""
    shutil.copytree(folder, place)
    modules = [
        ("Transformer", "base.modules.transformer", ""),
        ("LogitScore", "cross_encoder.modules.logit_score", "1_S"),
    ]
    entries = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.{module}.{kind}"}
        for at, (kind, module, path) in enumerate(modules)
    ]
    (place / "modules.json").write_text(json.dumps(entries))
    (place / "1_S").mkdir()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(word) for name, word in (("true", "yes"), ("false", "no"))
    }
    (place / "1_S" / "config.json").write_text(json.dumps({**ids, "module_input_name": "causal_logits"}))
    one = {"method": "forward", "method_output_name": "logits"}
    config: dict[str, Any] = {"transformer_task": "text-generation", "module_output_name": "causal_logits"}
    config["modality_config"] = {"text": one, **({"message": {**one, "format": "flat"}} if template else {})}
    (place / "sentence_bert_config.json").write_text(json.dumps(config))
    (place / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "CrossEncoder"}))
    if template:
        (place / "chat_template.jinja").write_text(template)
    return place


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_cross_encoder_gives_the_scores_of_sentence_transformers(folder: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    place = cross_encoder(folder, tmp_path / "folder")
    expected = library.CrossEncoder(str(place), device="cpu", local_files_only=True).predict(
        [tuple(one) for one in PAIRS]
    )
    base = ae.capture(place, tmp_path / "model.pt")
    found = scores(ae.build(base, [], tmp_path / "bundle"))
    assert np.ptp(expected) > 1e-3
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_chat_template_needs_its_prompt(folder: Path, tmp_path: Path) -> None:
    """Without it, the head scores but does not answer; with it, it matches sentence-transformers."""
    library = pytest.importorskip("sentence_transformers")
    one = "{{ messages | selectattr('role', 'eq', 'ROLE') | map(attribute='content') | first }}"
    template = PROMPT.replace("{text}", one.replace("ROLE", "query")).replace("{pair}", one.replace("ROLE", "document"))
    plain = shutil.copytree(folder, tmp_path / "plain")  # because chat templates are encoded without special tokens
    tokenizer = json.loads((plain / "tokenizer.json").read_text())
    (plain / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    place = cross_encoder(plain, tmp_path / "folder", template=template)
    heard = Heard()
    base = ae.capture(place, tmp_path / "model.pt", reporter=heard)
    assert base.base_head is not None
    assert base.base_head.head is not None
    assert base.base_head.head.task is None
    assert [note for note in heard.notes if "`prompt`" in note]
    (tmp_path / "prompt.txt").write_text(PROMPT)
    prompted = ae.capture(place, tmp_path / "prompted.pt", prompt=tmp_path / "prompt.txt")
    expected = library.CrossEncoder(str(place), device="cpu", local_files_only=True).predict(
        [tuple(one) for one in PAIRS]
    )
    found = scores(ae.build(prompted, [], tmp_path / "bundle"))
    assert np.abs(found - expected).max() < 1e-5
    (tmp_path / "prompt.txt").write_text(PROMPT.replace("answer", "say"))
    with pytest.raises(UsageError, match=r"(?s)encodes a pair differently.*query: \{text\}.*answer:"):
        ae.capture(place, tmp_path / "wrong.pt", prompt=tmp_path / "prompt.txt")


@pytest.mark.extended
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reranker_tokens": ["yes"]}, "must name two tokens"),
        ({"reranker_tokens": ["yes", "nonesuch"]}, "does not have.*found `nonesuch`"),
        ({"prompt": "{pair} before {text}"}, "applies to rerankers only"),
        ({"prompt": "{pair} before {text}", "reranker_tokens": ["yes", "no"]}, "lacks placeholders for a pair"),
    ],
)
def test_invalid_reranker_options_are_refused(
    options: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    if "prompt" in options:
        (tmp_path / "prompt.txt").write_text(options["prompt"])
        options = {**options, "prompt": tmp_path / "prompt.txt"}
    with pytest.raises((UsageError, AdapterError), match=message):
        ae.capture(folder, tmp_path / "model.pt", **options)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.extended
def test_logits_without_a_linear_layer_are_refused(minilm_folder: Path, tmp_path: Path) -> None:
    """Gemma 2 has soft-capped logits."""
    options = {**QWEN3, "final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8}
    small("Gemma2", "ForCausalLM", **options).save_pretrained(tmp_path / "folder")
    shutil.copy(minilm_folder / "tokenizer.json", tmp_path / "folder")
    with pytest.raises(BaseModelError, match="not a linear layer"):
        ae.capture(tmp_path / "folder", tmp_path / "model.pt", reranker_tokens=["yes", "no"])


@pytest.mark.parametrize("template", ["{text}", "{pair} {text}", "{text} {pair} {pair}", "plain"])
def test_a_template_has_each_place_once(template: str) -> None:
    with pytest.raises(AdapterError, match="lacks placeholders for a pair"):
        Task("ranking", input="pair", template=template)
    with pytest.raises(AdapterError, match="only a ranking has `template`"):
        Task("regression", input="pair", template="{text} {pair}")
