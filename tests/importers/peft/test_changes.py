"""Changes computed from the base's weights: missing and unused tensors are named, with a fix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from peft_bases import peft_base
from peft_folders import Arrays, adapter_folder, bare_bert, changed, import_peft

import adapter_export as ae
from adapter_export.errors import AdapterError, TensorError
from adapter_export.plugins.formats.importers.peft.methods.full_rank import first_of_permutation
from adapter_export.plugins.formats.importers.tensor_map import Imported


def imported(folder: Path, **options: object) -> Imported:
    sites, tensors = bare_bert()
    return import_peft(folder, sites, base="sha256:0", name="a", base_tensor=tensors.get, **options)


def without(*words: str) -> object:
    def left(tensors: Arrays) -> Arrays:
        return {key: tensor for key, tensor in tensors.items() if not any(word in key for word in words)}

    return left


def test_random_positions_match_torch() -> None:
    torch = pytest.importorskip("torch")
    for length, count, seed in ((12, 12, 0), (1536, 20, 777), (5, 3, 2**32 - 1)):
        drawn = torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:count]
        np.testing.assert_array_equal(first_of_permutation(length, count, seed), drawn.numpy())


def test_a_change_of_full_rank_is_a_choice() -> None:
    with pytest.raises(AdapterError, match=r"full-rank.*8,192 bytes at 2 layers.*dense"):
        imported(adapter_folder("change_fourierft"), dense=False)
    assert set(imported(adapter_folder("change_fourierft")).adapter.graphs) == {"delta"}


def test_low_rank_changes_are_imported_as_factors() -> None:
    assert set(imported(adapter_folder("change_dora"), dense=False).adapter.graphs) == {"scaled_lora_bias"}
    assert set(imported(adapter_folder("change_vera"), dense=False).adapter.graphs) == {"lora"}


def test_missing_projections_are_refused_with_advice(tmp_path: Path) -> None:
    folder = changed(adapter_folder("change_vera"), tmp_path / "a", tensors=without("vera_A"))
    with pytest.raises(AdapterError, match=r"no `base_model\.vera_A`.*save_projection=True"):
        imported(folder)


def test_missing_unused_and_misshapen_tensors_are_listed(tmp_path: Path) -> None:
    key = "base_model.model.encoder.layer.0.attention.self.query"

    def spoiled(tensors: Arrays) -> Arrays:
        kept = without("layer.1.attention.self.query.vera_lambda_d")(tensors)
        return kept | {f"{key}.vera_lambda_c": np.ones(3, np.float32), f"{key}.vera_lambda_b": np.ones(5, np.float32)}

    with pytest.raises(TensorError) as caught:
        imported(changed(adapter_folder("change_vera"), tmp_path / "a", tensors=spoiled))
    for word in ("layer.1.attention.self.query.vera_lambda_d` is missing", "vera_lambda_c` is left over", "together"):
        assert word in str(caught.value)


def test_another_version_of_peft_is_a_note(tmp_path: Path) -> None:
    folder = changed(adapter_folder("change_dora"), tmp_path / "a", config={"peft_version": "0.19.1"})
    assert any("version 0.19.1" in note and "0.21" in note for note in imported(folder).notes)
    assert not any("checked with" in note for note in imported(adapter_folder("change_dora")).notes)


def test_changes_without_weights_of_the_base_are_refused() -> None:
    sites, _ = bare_bert()
    with pytest.raises(AdapterError, match="base's weights"):
        import_peft(adapter_folder("change_dora"), sites, base="sha256:0", name="a", base_tensor=lambda _: None)


def test_a_bias_that_is_not_seen_is_no_bias_of_zero(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = ae.open_base(peft_base(tmp_path_factory, "bert") / "model.onnx")
    find = base.layer_at
    (site, *_) = (site for site in base.sites.complete if site.name == "layers.0.attention.query")
    layer = find(site)
    assert layer is not None
    assert layer.bias is not None
    del base.model.model.graph.initializers[layer.names[1]]
    assert find(site) is None
