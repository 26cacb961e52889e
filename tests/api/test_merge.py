"""Adapters merged into the weights of their base: results are unchanged, or nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from heard import Heard
from peft_bases import peft_base
from peft_folders import adapter_folder
from random_kinds import random_tensors

import adapter_export as ae
from adapter_export.bases.base_view import BaseView
from adapter_export.bases.forms import OnnxFileBase
from adapter_export.errors import AdapterError, BaseMismatchError
from adapter_export.graph.kinds import KINDS, LoraOptions
from adapter_export.onnx_backend.base.merged_graph import MERGED_KEY
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.plugins.formats.importers.plain_tensors import pack


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peft_base(tmp_path_factory, "bert")


def opened(path: Path) -> ae.Base:
    """Open one of our bases, without the sandbox."""
    return ae.open_base(path) if path.suffix == ".pt" else OnnxFileBase(path, loaded=open_onnx(path))


@pytest.mark.parametrize("name", ["change_dora", "bert_ia3", "change_norms"])
def test_torch_and_onnx_take_a_fixed_change(name: str, bert: Path, tmp_path: Path) -> None:
    base = ae.open_base(bert / "model.pt")
    adapter = ae.import_peft(adapter_folder(name), base, name="a")
    prints = set()
    for file in ("model.pt", "model.onnx"):
        merged = ae.merge(bert / file, adapter, tmp_path / file)
        assert 0 < merged.error < 2e-5 < 1 < merged.scale
        assert merged.compared > 100
        again = opened(tmp_path / file)
        assert again.fingerprint == merged.fingerprint != base.fingerprint
        prints.add(merged.fingerprint)
        with pytest.raises(BaseMismatchError):
            ae.merge(again, adapter, tmp_path / "twice")
    assert len(prints) == 2
    assert "was merged into" in ae.open_base(tmp_path / "model.pt").notes[-1]
    record = json.loads(again.model.model.metadata_props[MERGED_KEY])
    assert record["adapter"] == "a"
    assert record["base"] == base.fingerprint


def test_fused_and_conv1d_layers_are_merged(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    folder = peft_base(tmp_path_factory, "gpt2")
    base = ae.open_base(folder / "model.pt")
    kind = KINDS["lora"](LoraOptions(modules=("query", "value", "ffn.up"), rank=2))
    adapter = pack(
        random_tensors(kind, base.sites.complete), kind, BaseView(base.fingerprint, base.sites.complete), name="a"
    )
    merged = ae.merge(base, adapter.adapter, tmp_path / "m.pt")
    assert merged.error < 2e-5 < merged.scale
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in merged.tensors} == {"c_attn", "c_fc"}


def test_a_head_becomes_the_base_s_own(bert: Path, tmp_path: Path) -> None:
    base = ae.open_base(bert / "model.pt")
    adapter = ae.import_peft(
        adapter_folder("bert_lora_classify"), base, name="a", labels=("x", "y", "z"), reporter=Heard()
    )
    ae.merge(base, adapter, tmp_path / "m.pt", reporter=Heard())
    own = ae.open_base(tmp_path / "m.pt").base_head
    assert own is not None
    assert own.head is not None
    assert own.head.labels == ("x", "y", "z")
    with pytest.raises(AdapterError, match="head"):
        ae.merge(bert / "model.onnx", adapter, tmp_path / "m.onnx")


def test_merge_refuses_adapters_that_depend_on_the_input(bert: Path, tmp_path: Path) -> None:
    base = ae.open_base(bert / "model.pt")
    sites = base.sites.complete
    for name, words in (("houlsby", "whole sublayer"), ("lora", "not linear")):
        kind = KINDS[name].changed(gate=True) if name == "lora" else KINDS[name]().with_widths(b=4)
        made = pack(random_tensors(kind, sites), kind, BaseView(base.fingerprint, sites), name="a").adapter
        with pytest.raises(AdapterError, match=words):
            ae.merge(base, made, tmp_path / "m.pt")
    assert not (tmp_path / "m.pt").exists()
