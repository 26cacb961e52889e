"""`attach`: a new or an existing adapter, in a module or in a base."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_encoder
import torch
from small_encoder import Encoder

import adapter_export as ae
from adapter_export.errors import UsageError
from adapter_export.torch_backend.attach import AdaptedModel


def test_attached_adapters_are_named_after_their_folder_and_resume(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, example = Encoder().eval(), small_encoder.inputs()
    with ae.attach(
        module, kind="pfeiffer", bottleneck=4, labels=["no", "yes"], pooling="first", seed=3, example_inputs=example
    ) as adapter:
        assert set(module(**example)) == {"hidden", "pooled", "logits"}
        adapter.save(tmp_path / "mine")
        adapter.save(tmp_path / "mine-2", name="other")
    found = ae.load_adapter(tmp_path / "mine")
    assert (found.name, found.kind, ae.load_adapter(tmp_path / "mine-2").name) == ("mine", "pfeiffer", "other")
    assert {place.widths["b"] for place in found.placements.values()} == {4}
    assert found.head is not None
    assert found.head.labels == ("no", "yes")
    with ae.attach(module, tmp_path / "mine", example_inputs=example) as adapter:
        assert adapter.adapter is not None
        assert adapter.adapter.kind == "pfeiffer"
        with torch.no_grad():
            for tensor in adapter.parameters():
                tensor.add_(1)
        adapter.save(tmp_path / "second")
    second = ae.load_adapter(tmp_path / "second")
    assert all((abs(second.weights[name] - found.weights[name] - 1) < 1e-6).all() for name in found.weights)


def test_a_base_is_a_model_of_its_own(tmp_path: Path) -> None:
    base = ae.open_base(small_encoder.save_encoder(tmp_path / "model.pt"))
    with ae.attach(base, kind="houlsby", bottleneck=4, labels=["no", "yes"]) as adapter:
        assert isinstance(adapter, AdaptedModel)
        assert adapter(**small_encoder.inputs())["logits"].shape == (3, 2)
        adapter.save(tmp_path / "mine")
    assert ae.load_adapter(tmp_path / "mine").base == base.fingerprint


def test_an_option_that_the_kind_does_not_have_is_refused(tmp_path: Path) -> None:
    base = ae.open_base(small_encoder.save_encoder(tmp_path / "model.pt"))
    with pytest.raises(UsageError, match="has no such option"):
        ae.attach(base, kind="houlsby", rank=2)
