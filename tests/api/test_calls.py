"""Arguments of the API: objects, folders, names and mappings."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from heard import Heard
from tiny_onnx import random_adapter, save_tiny
from torch import nn

import adapter_export as ae
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose import COMPOSITION
from adapter_export.graph.kinds import pfeiffer


@pytest.fixture
def base(tmp_path: Path) -> ae.Base:
    return ae.open_base(save_tiny(tmp_path))


def _adapter(base: ae.Base, name: str) -> Adapter:
    return random_adapter(name, pfeiffer(), base.model, bottleneck=4, labels=("a", "b"))


def test_open_base_returns_an_open_base_unchanged(base: ae.Base) -> None:
    assert ae.open_base(base) is base
    assert (base.form, base.trainable, base.tokenizer, base.max_tokens) == ("onnx", False, None, None)


def test_adapters_are_objects_folders_names_and_renamed(base: ae.Base, tmp_path: Path) -> None:
    one, two = (_adapter(base, name) for name in ("one", "two"))
    ae.save(one, tmp_path / "one")
    given, heard = {"first": tmp_path / "one", "second": two}, Heard()
    bundle = ae.build(base, given, tmp_path / "bundle", variants=("slots",), reporter=heard)
    assert heard.notes == []
    assert bundle.session().adapters == ("first", "second")
    bundle = ae.add(bundle, ["third=one", one], against=base)  # a name is looked up beside the base
    assert bundle.session().adapters == ("first", "second", "third", "one")
    with pytest.raises(ae.errors.AdapterError, match="no adapter with this name; found `nobody`"):
        ae.remove(bundle, ["nobody"])
    assert ae.remove(tmp_path / "bundle", ["second", "one"]).session().adapters == ("first", "third")
    assert ae.verify(bundle).passed


def test_two_of_one_name_are_refused_in_the_words_of_the_caller(base: ae.Base, tmp_path: Path) -> None:
    one = _adapter(base, "one")
    with pytest.raises(ae.errors.AdapterError, match=r"^two adapters have the same name; found `one` 2") as raised:
        ae.build(base, [one, one], tmp_path / "bundle")
    assert "rename it: `other=FOLDER`" in raised.value.sentence("shell")
    with pytest.raises(ae.errors.UsageError, match="the name of an adapter is empty"):
        ae.build(base, [""], tmp_path / "bundle")


def test_build_names_invalid_arguments_as_python_does(base: ae.Base, tmp_path: Path) -> None:
    with pytest.raises(ae.errors.UsageError, match=r"`int8_embeddings=True` requires quantised weights"):
        ae.build(base, [], tmp_path / "bundle", int8_embeddings=True, base_precision="fp16")
    with pytest.raises(ae.errors.UsageError, match=r"^`variants`: unknown variants; found fast"):
        ae.build(base, [_adapter(base, "one")], tmp_path / "bundle", variants=("fast",))


def test_a_composition_records_its_members(base: ae.Base, tmp_path: Path) -> None:
    one, two = (_adapter(base, name) for name in ("one", "two"))
    folder = ae.save(one, tmp_path / "one")
    made = ae.compose("average", [folder, two], name="mean", weights=(0.25, 0.75))
    members = made.training[COMPOSITION]["members"]
    assert [member["name"] for member in members] == ["one", "two"]
    assert members[0]["weights_sha256"] == hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    with pytest.raises(ae.errors.UsageError, match="`stack` has no such option; found `weights`"):
        ae.compose("stack", [one, two], name="both", weights=(1, 1))


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, batch_first=True)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"hidden": self.layer(self.embedding(input_ids))}


def test_a_module_is_captured_with_an_example(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(ae.errors.UsageError, match="Pass `example_inputs`"):
        ae.capture(_Encoder(), path)
    example = {"input_ids": torch.ones(2, 5, dtype=torch.int64)}
    described = ["input_ids=int64[batch,sequence]"]
    with pytest.raises(ae.errors.UsageError, match="or describe them in `inputs`"):
        ae.capture(_Encoder(), path, example_inputs=example, inputs=described)
    ae.capture(_Encoder(), path, inputs=described)
    base = ae.capture(_Encoder(), path, example_inputs=example, force=True)
    assert [record.axes for record in base.inputs] == [("batch", "sequence")]
    assert base.torch.fingerprint == base.fingerprint
    assert {"layers.0.attention", "layers.0.ffn"} < set(base.sites.names)
    assert not base.sites.not_placed
    with pytest.raises(ae.errors.OutputExistsError, match="pass `force=True`"):
        ae.capture(path, path)
