"""A layer that the base calls beside its site: PEFT's adapter acts at both calls, ours at one, so it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from peft_bases import peft_base, peft_base_in_torch
from peft_folders import import_peft, refused_folder
from safetensors.numpy import load_file

from adapter_export.errors import AdapterError
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.torch_backend.torch_runner import TorchRunner

FOLDER = refused_folder("called_twice")
QUERIES = {f"layers.{n}.attention.query" for n in range(2)}


@pytest.fixture(scope="module")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peft_base(tmp_path_factory, "deberta")


@pytest.fixture(scope="module")
def in_torch(deberta: Path) -> TorchBase:
    return peft_base_in_torch(deberta, "deberta")


@pytest.fixture(scope="module")
def in_onnx(deberta: Path) -> OnnxBase:
    """The exporter has folded the projections of positions, and kept only their results."""
    return open_onnx(deberta / "model.onnx")


def called_elsewhere(sites: SiteMap) -> dict[str, int]:
    return {site.name: site.other_calls for site in sites if site.other_calls}


def test_both_views_know_the_second_call(in_torch: TorchBase, in_onnx: OnnxBase) -> None:
    """DeBERTa projects relative positions with the layers of queries and keys."""
    keys = {name.replace("query", "key") for name in QUERIES}
    assert called_elsewhere(discover(flow_graph(in_torch.flat))) == dict.fromkeys(QUERIES | keys, 1)
    assert called_elsewhere(in_onnx.sites) == dict.fromkeys(QUERIES | keys, 1)


def test_an_adapter_on_such_a_layer_is_refused(in_torch: TorchBase, in_onnx: OnnxBase) -> None:
    for sites in (discover(flow_graph(in_torch.flat)), in_onnx.sites):
        with pytest.raises(AdapterError, match="also calls on other values") as error:
            import_peft(FOLDER, sites, base="sha256:0", name="a")
        assert "`encoder.layer.0.attention.self.query_proj`, `encoder.layer.1" in str(error.value)
        assert "value_proj" not in str(error.value)


def test_ignoring_the_second_call_gives_wrong_results(in_torch: TorchBase) -> None:
    """The refusal is needed: with the second call forgotten, the adapter is taken and the result is wrong."""
    sites = discover(flow_graph(in_torch.flat))
    forgotten = replace(sites, sites=tuple(replace(site, other_calls=0) for site in sites))
    adapter = import_peft(FOLDER, forgotten, base=in_torch.fingerprint, name="a").adapter
    record = load_file(Path(FOLDER) / "expected.safetensors")
    inputs = {record.name: np.zeros((2, 5), np.int64) for record in in_torch.inputs}
    inputs |= {key.removeprefix("input."): value for key, value in record.items() if key.startswith("input.")}
    (found,) = TorchRunner(in_torch).run(inputs, adapter).values()
    real = inputs["attention_mask"] == 1
    assert np.abs(found - record["float64.last_hidden_state"])[real].max() > 0.01
