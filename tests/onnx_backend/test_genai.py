"""Folders of onnxruntime-genai: opened by their configuration, and what of them goes into a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_decoder import open_cached

from adapter_export.api.base import form_of, open_base
from adapter_export.errors import BaseModelError, FileError, FormatError
from adapter_export.onnx_backend.base.genai import open_genai


def config(**decoder: Any) -> dict[str, Any]:
    return {"model": {"context_length": 40, "decoder": {"head_size": 8, **decoder}}, "search": {"top_k": 1}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_cached(tmp_path)
    (tmp_path / "genai_config.json").write_text(json.dumps(config(filename="decoder.onnx")))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    return tmp_path


def test_its_decoder_is_a_base_like_any_other(folder):
    source = open_base(folder)
    assert (source.form, source.max_tokens, source.tokenizer) == ("genai", 40, "{}")
    assert [site.name for site in source.sites.map.sublayers] == ["layers.0.attention", "layers.0.ffn"]


def test_its_sites_follow_a_site_map(folder, tmp_path):
    document = {"version": "1.0.0", "sites": {"layers.0.ffn": None}}
    (tmp_path / "map.json").write_text(json.dumps(document))
    source = open_base(folder, site_map=tmp_path / "map.json")
    assert source.genai is not None
    assert [site.name for site in source.sites.map.sublayers] == ["layers.0.attention"]


def test_a_bundle_keeps_all_but_the_graph_and_its_weights(folder):
    kept = open_genai(folder).kept("model.onnx")
    assert set(kept) == {"genai_config.json", "tokenizer.json", "chat_template.jinja"}
    assert kept["tokenizer.json"] == folder / "tokenizer.json"
    written = kept["genai_config.json"]
    assert isinstance(written, bytes)
    assert json.loads(written) == config(filename="model.onnx")


def test_the_configuration_stays_as_it_is_where_the_graph_has_that_name_already(folder):
    assert open_genai(folder).kept("decoder.onnx")["genai_config.json"] == folder / "genai_config.json"


@pytest.mark.parametrize(
    ("document", "found"),
    [(config(), "nothing"), ([], "nothing"), (config(filename="../decoder.onnx"), r"`\.\./decoder\.onnx`")],
)
def test_a_configuration_without_a_decoder_in_its_folder_is_refused(folder, document, found):
    (folder / "genai_config.json").write_text(json.dumps(document))
    with pytest.raises(BaseModelError, match=rf"names no graph of a decoder in its folder; found {found}"):
        open_genai(folder)


def test_a_graph_that_is_not_there_and_a_configuration_that_is_no_json_are_refused(folder):
    (folder / "decoder.onnx").unlink()
    with pytest.raises(FileError, match=r"decoder\.onnx: is not there"):
        open_genai(folder)
    (folder / "genai_config.json").write_text("{")
    with pytest.raises(FormatError, match=r"genai_config\.json"):
        open_genai(folder)


def test_torch_cannot_train_it(folder):
    with pytest.raises(BaseModelError, match=r"is an onnxruntime-genai folder, which torch cannot train"):
        _ = open_base(folder).torch


def test_its_bundle_is_a_bundle(folder):
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(BaseModelError, match=r"a bundle: its `manifest\.json` is there"):
        form_of(folder)
