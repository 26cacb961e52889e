"""Adapters in PEFT's format: what PEFT wrote comes back bit for bit, and PEFT computes what the adapter does."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from exported import FINGERPRINT, exported, random_for_sites, with_factor
from hand_made_sites import BERT, encoder
from peft import PeftModel
from peft_bases import peft_base, peft_base_in_torch
from peft_folders import (
    CASES,
    CONFIG,
    Arrays,
    adapter_folder,
    bare_bert,
    base_folder,
    expected,
    import_peft,
    read_config,
    refused_folder,
)

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import AdapterError, ParityError
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose import average, stack
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds import Ia3Options, LoraOptions, houlsby, ia3, lora
from adapter_export.numerics.base_layers import layer_finder
from adapter_export.plugins.formats.exporters import FORMATS
from adapter_export.plugins.formats.exporters.export_format import ExportRequest
from adapter_export.plugins.formats.exporters.proof import compare_with_export
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.architecture_head import architecture_head
from adapter_export.torch_backend.torch_runner import TorchRunner

SITES = encoder(2, 16, 32, BERT)

DIFFERENT = {
    "bert_lora_bias_lora_only": "a trained bias of the base becomes `lora_bias`, inside alpha/r",
    "bert_lora_classify_pooler": "the LoRA of the pooler is inside the pooler that is saved",
    "change_lokr": "a LoRA",
    "change_olora": "a LoRA beside the base's own weights, which OLoRA changed",
    "change_vera": "a LoRA",
    "tied_lora_language_head": "PEFT saves the base's language head along, which the file does not need",
}
"""Tensors of exported imports that differ from PEFT's own, as in `docs/how-to/export-adapters.md`."""

REFUSED = {
    "bert_lora_bias_all": "embeddings",
    "bert_lora_bias_all_pooler": "embeddings",
    "change_dora": "scale_features",
    "change_fourierft": "full-rank change",
    "change_hira": "full-rank change",
    "change_norms": "embeddings",
    "change_oft": "full-rank change",
}
"""Words of the refusals."""

QUICK = ("bert_lora", "bert_lora_patterns", "bert_lora_bias", "bert_ia3", "bert_ia3_classify")


def view(sites: SiteMap, tensors: Arrays, model_type: str | None = None, **more: Any) -> BaseView:
    return BaseView(FINGERPRINT, sites, model_type, tensors.get, **more)


def check_round_trip(
    name: str, sites: SiteMap, tensors: Arrays, model_type: str | None, folder: Path, **base: Any
) -> None:
    base = {"base": FINGERPRINT, "base_tensor": tensors.get, "model_type": model_type, **base}
    adapter = import_peft(adapter_folder(name), sites, name="a", **base).adapter
    shown = {key: base[key] for key in ("layer_at", "head_of") if key in base}
    request = ExportRequest(adapter, view(sites, tensors, model_type, **shown))
    if name in REFUSED:
        with pytest.raises(AdapterError, match=f"cannot be exported to PEFT.*{REFUSED[name]}"):
            exported(request, "peft", folder)
        return
    found = exported(request, "peft", folder)
    assert found.error == 0
    file = next(adapter_folder(name).glob("adapter_model.safetensors"), None)
    if file is not None and name not in DIFFERENT:
        original = read_tensors(file, widen=True)
        assert found.tensors.keys() == original.keys()
        assert all(np.array_equal(found.tensors[key], original[key]) for key in original)
    wanted = read_config(adapter_folder(name))
    if name not in DIFFERENT and "rslora" not in name:
        for key in ("peft_type", "task_type", "base_model_name_or_path"):
            assert found.config[key] == wanted[key] or (key, wanted[key]) == ("task_type", None)


@pytest.mark.parametrize("name", QUICK)
def test_tensors_of_bert_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    check_round_trip(name, *bare_bert(), "bert", tmp_path / "out")


@pytest.mark.extended
@pytest.mark.parametrize("base", sorted({base_folder(name).name for name in CASES}))
def test_tensors_of_every_case_come_back_bit_for_bit(
    base: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = peft_base_in_torch(peft_base(tmp_path_factory, base), base)
    tensors = {key: value.detach().numpy() for key, value in model.program.state_dict.items()}
    sites, layer_at, head_of = TorchRunner(model).sites, layer_finder(model), partial(architecture_head, model)
    for name in (name for name in CASES if base_folder(name).name == base):
        check_round_trip(name, sites, tensors, model.model_type, tmp_path / name, layer_at=layer_at, head_of=head_of)


@pytest.mark.extended
def test_a_head_that_reads_the_last_token_comes_back(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = peft_base_in_torch(peft_base(tmp_path_factory, "llama"), "llama")
    (folder,) = (path.parent for path in refused_folder("last_token").rglob(CONFIG))
    sites = TorchRunner(model).sites
    adapter = import_peft(folder, sites, name="a", base=FINGERPRINT).adapter
    found = exported(ExportRequest(adapter, view(sites, {}, "llama")), "peft", tmp_path / "out")
    original = read_tensors(folder / "adapter_model.safetensors")
    assert found.config["task_type"] == "SEQ_CLS"
    assert found.tensors.keys() == original.keys()
    assert all(np.array_equal(found.tensors[key], original[key]) for key in original)
    biased = replace(adapter, weights={**adapter.weights, "head.classifier.bias": np.ones(3, np.float32)})
    with pytest.raises(AdapterError, match="no bias in transformers"):
        exported(ExportRequest(biased, view(sites, {}, "llama")), "peft", tmp_path / "biased")


CLASSES = {"SEQ_CLS": "AutoModelForSequenceClassification", "TOKEN_CLS": "AutoModelForTokenClassification"}


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
@pytest.mark.parametrize(
    "name", ["bert_lora_patterns", "bert_ia3", "gpt2_lora", "llama_lora", "bert_lora_classify", "llama_lora_tag"]
)
def test_peft_computes_the_same_with_an_exported_adapter(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = base_folder(name)
    model = peft_base_in_torch(peft_base(tmp_path_factory, base.name), base.name)
    sites = TorchRunner(model).sites
    tensors = {key: value.detach().numpy() for key, value in model.program.state_dict.items()}
    seen = view(sites, tensors, model.model_type)
    folder = adapter_folder(name)
    adapter = import_peft(folder, sites, name="a", base=FINGERPRINT, base_tensor=seen.tensor).adapter
    exported(ExportRequest(adapter, seen), "peft", tmp_path / "out")
    record = expected(name)
    output = next(key.partition(".")[2] for key in record if key.startswith("float32."))
    auto = getattr(transformers, CLASSES.get(str(read_config(tmp_path / "out")["task_type"]), "AutoModel"))
    labels = {"num_labels": record[f"float32.{output}"].shape[-1]} if output == "logits" else {}
    with_adapter = PeftModel.from_pretrained(auto.from_pretrained(base, **labels), tmp_path / "out").eval()
    inputs = {key.removeprefix("input."): torch.from_numpy(record[key]) for key in record if key.startswith("input.")}
    with torch.no_grad():
        found = with_adapter(**inputs)[output].numpy()
    # the same library with the same tensors: it may add in another order
    np.testing.assert_allclose(found, record[f"float32.{output}"], rtol=0, atol=1e-5)


def random_lora(**options: object) -> Adapter:
    return random_for_sites(lora(LoraOptions(**options)), SITES)  # type: ignore[arg-type]


def test_the_factor_is_alpha_over_r_and_not_inside_b(tmp_path: Path) -> None:
    adapter = random_lora(modules=("query", "ffn.up"), rank=4, alpha={"query": 12, "ffn.up": 2})
    found = exported(ExportRequest(adapter, view(SITES, {})), "peft", tmp_path / "out")
    random = np.random.default_rng(1)
    for site in SITES.of_roles(("linear",)):
        if site.name not in adapter.placements:
            continue
        owned, u = adapter.parameters(site.name), random.standard_normal((5, site.width_in))
        down, up = (found.tensors[f"base_model.model.{site.path}.lora_{side}.weight"] for side in "AB")
        alpha = found.config["alpha_pattern"].get(site.path, found.config["lora_alpha"])
        factor = alpha / found.config["rank_pattern"].get(site.path, found.config["r"])
        assert factor == (3 if site.name.endswith("query") else 0.5)
        wanted = factor * (u @ owned["lora_A.weight"].astype(np.float64) @ owned["lora_B.weight"])
        np.testing.assert_allclose(factor * (u @ down.T.astype(np.float64) @ up.T), wanted, rtol=0, atol=1e-14)
        np.testing.assert_array_equal(up.T, owned["lora_B.weight"])


def test_another_factor_is_not_the_same_adapter(tmp_path: Path) -> None:
    adapter = random_lora(rank=4, alpha=12)
    request = ExportRequest(adapter, view(SITES, {}))
    exported(request, "peft", tmp_path / "out")
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    (tmp_path / "out" / CONFIG).write_text(json.dumps(config | {"lora_alpha": 4}))
    with pytest.raises(ParityError, match="the exported adapter at"):
        compare_with_export(request, FORMATS["peft"].read_back(request, tmp_path / "out"), 1e-12)
    with pytest.raises(ParityError):
        compare_with_export(request, with_factor(adapter, 3 * (1 + 1e-11)), 1e-12)


def test_ranks_biases_and_dropouts_of_modules_may_differ(tmp_path: Path) -> None:
    adapter = random_lora(
        modules=("query", "value"), rank={"query": 2, "value": 4}, alpha=6, dropout=0.1, lora_bias=True
    )
    found = exported(ExportRequest(adapter, view(SITES, {})), "peft", tmp_path / "out")
    assert found.config["lora_bias"] is True
    assert found.config["lora_dropout"] == 0.1
    assert {found.config["r"], *found.config["rank_pattern"].values()} == {2, 4}
    assert found.config["target_modules"] == ["query", "value"]
    assert not found.config["alpha_pattern"]


def test_ia3_names_the_modules_whose_input_it_scales(tmp_path: Path) -> None:
    adapter = random_for_sites(ia3(Ia3Options()), SITES)
    found = exported(ExportRequest(adapter, view(SITES, {})), "peft", tmp_path / "out")
    assert found.config["feedforward_modules"] == ["layer.0.output.dense", "layer.1.output.dense"]
    assert set(found.config["feedforward_modules"]) <= set(found.config["target_modules"])


def with_head(adapter: Adapter, options: HeadOptions, task: str = "single_label") -> Adapter:
    head = make_head(task, width=16, labels=("no", "yes"), options=options)  # type: ignore[arg-type]
    random = np.random.default_rng(3)
    shapes = head.graph.parameter_shapes(head.widths)
    weights = {f"head.{name}": random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    return replace(adapter, head=head, weights={**adapter.weights, **weights})


@pytest.mark.parametrize("task", ["single_label", "multi_label", "token"])
def test_exported_heads_have_the_names_of_peft(task: str, tmp_path: Path) -> None:
    options = HeadOptions() if task == "token" else HeadOptions("first", dense=1)
    adapter = with_head(random_lora(alpha=16), options, task)
    found = exported(ExportRequest(adapter, view(SITES, {}, "bert")), "peft", tmp_path / "out")
    assert found.config["task_type"] == ("TOKEN_CLS" if task == "token" else "SEQ_CLS")
    assert "classifier" in found.config["modules_to_save"]
    np.testing.assert_array_equal(
        found.tensors["base_model.model.classifier.weight"], adapter.weights["head.classifier.weight"].T
    )
    assert "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight" in found.tensors


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: random_for_sites(houlsby(), SITES), "single linear layers"),
        (lambda: random_lora(gate=True), "neither"),
        (lambda: stack(random_lora(), replace(random_lora(), name="other"), name="both"), "neither"),
        (lambda: average(random_lora(), replace(random_lora(), name="other"), name="both"), "neither"),
        (lambda: with_head(random_lora(), HeadOptions("mean")), "the head of `bert` in transformers"),
        (lambda: random_for_sites(lora(LoraOptions()), encoder(2)), "records no module path"),
    ],
    ids=["bottleneck", "gate", "stack", "average", "head", "no paths"],
)
def test_adapters_that_peft_cannot_compute_are_refused(make, words: str, tmp_path: Path) -> None:
    sites = encoder(2) if "path" in words else SITES
    with pytest.raises(AdapterError, match=words):
        exported(ExportRequest(make(), view(sites, {}, "bert")), "peft", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
