"""Folders of onnxruntime-genai: opening by configuration, and the parts that go into a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_decoder import open_cached
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from adapter_export.bases.detect import form_of
from adapter_export.bases.forms import GenaiBase
from adapter_export.bases.opening import open_base
from adapter_export.errors import BaseModelError, FileError, FormatError
from adapter_export.format.manifest import InputRecord, OutputRecord
from adapter_export.format.model_config import Generation
from adapter_export.onnx_backend.base.genai import generating_files, read_genai

TOKENIZER = Tokenizer(WordLevel({"a": 0}, unk_token="a")).to_str()


def config(**decoder: Any) -> dict[str, Any]:
    return {"model": {"context_length": 40, "decoder": {"head_size": 8, **decoder}}, "search": {"top_k": 1}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_cached(tmp_path)
    (tmp_path / "genai_config.json").write_text(json.dumps(config(filename="decoder.onnx")))
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    return tmp_path


def test_genai_decoder_opens_as_a_base(folder):
    source = open_base(folder)
    assert (source.form, source.max_tokens, source.tokenizer) == ("genai", 40, TOKENIZER)
    assert [site.name for site in source.sites.map.sublayers] == ["layers.0.attention", "layers.0.ffn"]


def test_genai_sites_follow_a_site_map(folder, tmp_path):
    document = {"version": "1.0.0", "sites": {"layers.0.ffn": None}}
    (tmp_path / "map.json").write_text(json.dumps(document))
    source = open_base(folder, site_map=tmp_path / "map.json")
    assert isinstance(source, GenaiBase)
    assert [site.name for site in source.sites.map.sublayers] == ["layers.0.attention"]


def test_a_bundle_keeps_all_but_the_graph_and_its_weights(folder):
    kept = open_base(folder).companions("model.onnx")
    assert set(kept) == {"genai_config.json", "tokenizer.json", "chat_template.jinja"}
    assert kept["tokenizer.json"] == folder / "tokenizer.json"
    written = kept["genai_config.json"]
    assert isinstance(written, bytes)
    assert json.loads(written) == config(filename="model.onnx")


def test_configuration_is_kept_if_it_names_the_graph(folder):
    assert open_base(folder).companions("decoder.onnx")["genai_config.json"] == folder / "genai_config.json"


@pytest.mark.parametrize(
    ("document", "found"),
    [(config(), "nothing"), ([], "nothing"), (config(filename="../decoder.onnx"), r"`\.\./decoder\.onnx`")],
)
def test_a_configuration_without_a_decoder_in_its_folder_is_refused(folder, document, found):
    (folder / "genai_config.json").write_text(json.dumps(document))
    with pytest.raises(BaseModelError, match=rf"names no decoder graph in its folder; found {found}"):
        read_genai(folder)


def test_missing_graphs_and_invalid_configurations_are_refused(folder):
    (folder / "decoder.onnx").unlink()
    with pytest.raises(FileError, match=r"decoder\.onnx: does not exist"):
        open_base(folder)
    (folder / "genai_config.json").write_text("{")
    with pytest.raises(FormatError, match=r"genai_config\.json"):
        open_base(folder)


def test_genai_folders_cannot_be_trained(folder):
    with pytest.raises(BaseModelError, match=r"is an onnxruntime-genai folder, which torch cannot train"):
        _ = open_base(folder).torch


def test_bundles_are_not_taken_for_genai_folders(folder):
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(BaseModelError, match=r"a bundle: its `manifest\.json` is there"):
        form_of(folder)


LAYERS = (0, 1)
INPUTS = (
    InputRecord("tokens", "int64", ("batch", "sequence"), "ids", 20),
    InputRecord("mask", "int64", ("batch", "past + sequence"), "mask"),
    *(
        InputRecord(f"past.{layer}.{name}", "float32", ("batch", 2, "past", 8), "cache", next=f"new.{layer}.{name}")
        for layer in LAYERS
        for name in "kv"
    ),
)
OUTPUTS = (
    OutputRecord("scores", "float32", ("batch", "sequence", 20)),
    *(OutputRecord(record.next, "float32", record.axes) for record in INPUTS if record.next),
)


def test_a_captured_decoder_of_any_names_gets_a_configuration():
    """`tests/torch_backend/test_language.py` generates with such a configuration."""
    files = generating_files(INPUTS, OUTPUTS, Generation((2, 7), begin=1, tokenizer_config="{}"), 40, "model.onnx")
    assert set(files) == {"genai_config.json", "tokenizer_config.json"}
    model = json.loads(files["genai_config.json"])["model"]
    decoder = model.pop("decoder")
    assert model == {
        "type": "decoder",
        "context_length": 40,
        "vocab_size": 20,
        "bos_token_id": 1,
        "eos_token_id": [2, 7],
    }
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (2, 2, 8)
    names = {"past_key_names": "past.%d.k", "past_value_names": "past.%d.v"}
    assert decoder["inputs"] == {"input_ids": "tokens", "attention_mask": "mask", **names}
    assert decoder["outputs"] == {
        "logits": "scores",
        "present_key_names": "new.%d.k",
        "present_value_names": "new.%d.v",
    }


@pytest.mark.parametrize(
    ("inputs", "outputs", "generation", "most"),
    [
        (INPUTS, OUTPUTS, Generation(), 40),
        (INPUTS, OUTPUTS, Generation((2,)), None),
        (INPUTS[:2], OUTPUTS[:1], Generation((2,)), 40),
        (INPUTS[:-1], OUTPUTS, Generation((2,)), 40),
        (INPUTS[:2] + INPUTS[4:], OUTPUTS[:1] + OUTPUTS[3:], Generation((2,)), 40),
        (INPUTS, OUTPUTS[1:], Generation((2,)), 40),
        ((*INPUTS, InputRecord("positions", "int64", ("batch", "sequence"), "values")), OUTPUTS, Generation((2,)), 40),
        ((*INPUTS[:-1], replace(INPUTS[-1], axes=("batch", 2, "past", 4))), OUTPUTS, Generation((2,)), 40),
    ],
    ids=[
        "no end",
        "no length",
        "no cache",
        "a value lacks",
        "begins at layer 1",
        "no logits",
        "positions",
        "two widths",
    ],
)
def test_unsuitable_models_get_no_generating_files(inputs, outputs, generation, most):
    assert generating_files(inputs, outputs, generation, most, "model.onnx") == {}
