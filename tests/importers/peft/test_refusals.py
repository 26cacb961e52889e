"""Unsupported options are rejected by name, with the reason; tensors that do not fit are all listed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft_folders import TENSORS, Arrays, adapter_folder, bare_bert, changed, import_peft, linear_site, refused_folder
from safetensors.numpy import load_file

from adapter_export.errors import AdapterError, AdapterExportError, FileError, FormatError, TensorError
from adapter_export.plugins.formats.importers.tensor_map import Imported
from adapter_export.sites.site import SiteMap

QUERY = "base_model.model.encoder.layer.0.attention.self.query"
VALUE = "base_model.model.encoder.layer.1.attention.self.value"


def imported(folder: Path, sites: SiteMap | None = None, **options: Any) -> Imported:
    bert, tensors = bare_bert()
    options = {"base_tensor": tensors.get, **options}
    return import_peft(folder, sites or bert, base="sha256:0", name="a", **options)


def refused(folder: Path, error: type[AdapterExportError], *words: str) -> None:
    with pytest.raises(error) as caught:
        imported(folder)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("embedding", ("`embeddings.word_embeddings`", "looks up no ids of a request", "this base shows none")),
        ("convolution", ("projection.lora_A.weight` [4, 3, 4, 4]", "convolution")),
        ("tokens", ("`embeddings.word_embeddings`", "looks up no ids of a request", "this base shows none")),
        (
            "pissa",
            (
                "`init_lora_weights` 'pissa_niter_4'",
                "Convert it to plain LoRA",
                "path_initial_model_for_weight_conversion",
            ),
        ),
        ("replication", ("`layer_replication` is [[0, 2], [1, 2]]",)),
        ("alora", ("`alora_invocation_tokens` is [4]", "activated LoRA")),
        ("saved_norm", ("`embeddings.LayerNorm`", "`encoder.layer.1.output.LayerNorm`", "modules_to_save")),
        ("saved_embeddings", ("`embeddings.word_embeddings`", "modules_to_save")),
        ("prefix", ("`task_type`", "`CAUSAL_LM`")),
        ("prompt", ("PROMPT_TUNING", "trained vectors")),
    ],
)
def test_peft_methods_without_a_graph_are_refused(name: str, words: tuple[str, ...]) -> None:
    refused(refused_folder(name), AdapterError, *words)


def llama() -> SiteMap:
    queries = (linear_site(f"layers.{n}.attention.query", f"layers.{n}.self_attn.q_proj", 32, 32) for n in range(2))
    head = replace(linear_site("x.0", "lm_head", 32, 60), name="lm_head", layer=None)
    return SiteMap((*queries, head), "final", 32)


def test_saved_output_weights_must_equal_those_of_the_base() -> None:
    folder, sites = refused_folder("output_layer"), llama()
    sites = replace(
        sites, sites=tuple(replace(site, path=f"model.{site.path}") for site in sites.sites[:2]) + sites.sites[2:]
    )
    own = load_file(folder / TENSORS)["base_model.model.lm_head.base_layer.weight"]
    found = imported(folder, sites, base_tensor={"lm_head.weight": own}.get)
    assert "lm_head" in found.adapter.placements
    for tensors in ({}, {"lm_head.weight": own + 1e-6}, {"lm_head.weight": own[:-1]}):
        with pytest.raises(AdapterError, match=r"lm_head\.base_layer\.weight` \[60, 32\], of which the base has"):
            imported(folder, sites, base_tensor=tensors.get)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_qalora": True}, "QA-LoRA"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"target_parameters": ["experts.down"]}, "outside of layers"),
        ({"loftq_config": {"loftq_bits": 4}}, "LoftQ"),
        ({"corda_config": {"a": 1}}, "CorDA"),
        ({"arrow_config": {"a": 1}}, "mixes several adapters"),
        ({"use_a_new_trick": True}, "`use_a_new_trick` is True: it is not known to this release"),
        ({"new_factor": 0.5}, "`new_factor` is 0.5"),
        ({"peft_type": "NEWEST"}, "a kind that this release does not know"),
        ({"use_qalora": True, "new_factor": 2}, "`use_qalora` is True"),
        ({"use_qalora": True, "new_factor": 2}, "`new_factor` is 2"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "loftq"}, "loftq"),
    ],
)
def test_active_unsupported_options_are_refused(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    refused(changed(adapter_folder("bert_lora"), tmp_path / "a", config=config), AdapterError, words)


@pytest.mark.parametrize(
    "config",
    [
        {"a_new_key": None, "another": False, "a_list": [], "an_object": {}, "a_text": ""},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"peft_version": "99.0", "base_model_name_or_path": "nobody/knows", "revision": "main"},
        {"fan_in_fan_out": True},
    ],
)
def test_inactive_options_are_ignored(tmp_path: Path, config: dict[str, Any]) -> None:
    found = imported(changed(adapter_folder("bert_lora"), tmp_path / "a", config=config)).adapter
    wanted = imported(adapter_folder("bert_lora")).adapter
    assert found.weights.keys() == wanted.weights.keys()
    assert all(np.array_equal(found.weights[name], wanted.weights[name]) for name in wanted.weights)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": "8"}, "`r`"),
        ({"r": 0}, "at least 1"),
        ({"r": True}, "a whole number"),
        ({"lora_alpha": [1]}, "`lora_alpha`"),
        ({"bias": "some"}, "none, all or lora_only"),
        ({"use_rslora": 1}, "true or false"),
        ({"rank_pattern": {"query": "4"}}, "`rank_pattern.query`"),
        ({"rank_pattern": {"(": 4}}, "a regular expression"),
        ({"alpha_pattern": {"a{2,1}": 4}}, "a regular expression"),
        ({"target_modules": "("}, "a regular expression"),
        ({"target_modules": [1]}, "a list of texts"),
        ({"layers_to_transform": ["1"]}, "a list of whole numbers"),
        ({"task_type": 3}, "`task_type`"),
        ({"peft_type": None}, "`peft_type`"),
    ],
)
def test_invalid_config_values_are_named(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    refused(changed(adapter_folder("bert_lora"), tmp_path / "a", config=config), FormatError, words)


def _spoiled(tensors: Arrays, how: str) -> Arrays:
    a, b = f"{QUERY}.lora_A.weight", f"{VALUE}.lora_B.weight"
    match how:
        case "missing":
            return {name: tensor for name, tensor in tensors.items() if name not in (a, b)}
        case "left over":
            return tensors | {f"{QUERY}.lora_C.weight": tensors[a], "stray": tensors[a].copy()}
        case "rank":
            return tensors | {a: tensors[a][:3].copy(), b: tensors[b][:, :2].copy()}
        case "width":
            return tensors | {a: np.ascontiguousarray(tensors[a].T), b: np.ascontiguousarray(tensors[b].T)}
        case "not finite":
            return tensors | {a: np.full_like(tensors[a], np.nan), b: np.full_like(tensors[b], np.inf)}
        case "whole numbers":
            return tensors | {a: tensors[a].astype(np.int32), b: tensors[b].astype(np.int64)}
        case "empty":
            return tensors | {a: np.zeros((0, 32), np.float32), b: np.zeros((32, 0), np.float32)}
    raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", (f"`{QUERY}.lora_A.weight` is missing", f"`{VALUE}.lora_B.weight` is missing")),
        ("left over", (f"`{QUERY}.lora_C.weight` is left over", "`stray` is left over")),
        ("rank", ("query.lora_A.weight` has shape [3, 32], not [4, 32]", "has shape [32, 2], not [32, 4]")),
        ("width", ("has shape [32, 4], not [4, 32]", "has shape [4, 32], not [32, 4]")),
        ("not finite", (f"`{QUERY}.lora_A.weight` contains 128 NaN", f"`{VALUE}.lora_B.weight` contains 128 NaN")),
        ("whole numbers", ("is int32", "is int64")),
        ("empty", ("empty shape [0, 32]", "empty shape [32, 0]")),
    ],
)
def test_all_tensors_that_do_not_fit_are_listed(tmp_path: Path, how: str, words: tuple[str, ...]) -> None:
    folder = changed(adapter_folder("bert_lora"), tmp_path / "a", tensors=lambda tensors: _spoiled(tensors, how))
    refused(folder, TensorError, *words)


def test_layers_whose_tensors_were_lost_are_listed(tmp_path: Path) -> None:
    def cut(tensors: Arrays) -> Arrays:
        return {name: tensor for name, tensor in tensors.items() if ".layer.1." not in name}

    folder = changed(adapter_folder("bert_lora"), tmp_path / "a", tensors=cut)
    refused(folder, TensorError, "`encoder.layer.1.attention.self.query`, `encoder.layer.1.attention.self.value`")
    on_purpose = {"exclude_modules": r".*layer\.1\..*"}
    assert len(imported(changed(folder, tmp_path / "b", config=on_purpose)).adapter.placements) == 2


def test_a_file_without_tensors_of_its_kind_is_refused(tmp_path: Path) -> None:
    folder = changed(adapter_folder("bert_lora"), tmp_path / "a", tensors=lambda _: {})
    refused(folder, TensorError, "no lora tensor")


def test_modules_that_the_base_lacks_are_listed() -> None:
    bert, _ = bare_bert()
    small = SiteMap(tuple(site for site in bert if site.layer == 0), "final", 32)
    with pytest.raises(AdapterError, match=r"`encoder\.layer\.1\.attention\.self\.query`, `encoder.layer.1"):
        imported(adapter_folder("bert_lora"), small)


def test_bases_without_module_paths_are_refused() -> None:
    nameless = SiteMap((linear_site("layers.0.attention.query", None, 32, 32),), "final", 32)
    with pytest.raises(AdapterError, match="some of its 0 linear layers with a path"):
        imported(adapter_folder("bert_lora"), nameless)


def test_adapters_of_another_architecture_are_refused_unless_by_number(tmp_path: Path) -> None:
    named = {"base_model_class": "BertModel", "parent_library": "transformers.models.bert.modeling_bert"}
    folder = changed(adapter_folder("bert_lora"), tmp_path / "a", config={"auto_mapping": named})
    with pytest.raises(AdapterError, match=r"another architecture; found `bert`; expected `roberta`.*by_number=True"):
        imported(folder, model_type="roberta")
    for options in ({"model_type": "bert"}, {"model_type": "roberta", "by_number": True}, {}):
        assert len(imported(folder, **options).adapter.placements) == 4


def test_layers_by_their_numbers_are_named_in_a_note(tmp_path: Path) -> None:
    bert, _ = bare_bert()
    nameless = SiteMap(tuple(replace(site, path=None) for site in bert), "final", 32)
    with pytest.raises(AdapterError, match=r"`by_number=True`"):
        imported(adapter_folder("bert_lora"), nameless)
    found = imported(adapter_folder("bert_lora"), nameless, by_number=True)
    wanted = imported(adapter_folder("bert_lora"))
    assert found.adapter.placements == wanted.adapter.placements
    assert found.notes == ("module names of base and adapter differ: layers were matched by number",)

    def cut(tensors: Arrays) -> Arrays:
        return {name: tensor for name, tensor in tensors.items() if ".layer.1." not in name}

    folder = changed(adapter_folder("bert_lora"), tmp_path / "a", tensors=cut)
    with pytest.raises(TensorError, match=r"`layers\.1\.attention\.query`, `layers\.1\.attention\.value`"):
        imported(folder, nameless, by_number=True)


def test_renamed_modules_are_matched_by_number_if_the_user_says_so() -> None:
    bert, _ = bare_bert()
    other = SiteMap(tuple(replace(site, path=f"other.{site.name}") for site in bert), "final", 32)
    with pytest.raises(AdapterError, match=r"such as `other\.layers\.0\.attention\.query`.*`by_number=True`"):
        imported(adapter_folder("bert_lora"), other)
    found = import_peft(adapter_folder("bert_lora"), other, base="sha256:0", name="a", by_number=True)
    assert found.adapter.placements == imported(adapter_folder("bert_lora")).adapter.placements
    assert "matched by number" in found.notes[0]


def test_a_pooler_needs_a_base_with_one() -> None:
    words = "found `pooler.dense`;", "Pass a base that has these modules and depends on them"
    refused(adapter_folder("bert_lora_all_linear"), AdapterError, *words)


def test_trained_biases_need_the_base_and_a_linear_layer() -> None:
    refused(adapter_folder("bert_lora_bias_all_pooler"), AdapterError, "`pooler.dense.bias` belongs to no linear layer")
    bert, _ = bare_bert()
    with pytest.raises(AdapterError, match=r"the base has no `encoder\.layer\.0\.attention\.self\.query\.bias` \[32\]"):
        import_peft(adapter_folder("bert_lora_bias_lora_only"), bert, base="sha256:0", name="a")


@pytest.mark.parametrize(
    ("patterns", "differ"),
    [
        ({"alpha_pattern": {"query": 3}}, False),
        ({"alpha_pattern": {"query": 3}, "rank_pattern": {"query": 4}}, False),
        ({"alpha_pattern": {"query": 3}, "rank_pattern": {"que.*": 4}}, True),
        ({"alpha_pattern": {"^encoder.*query": 3}}, True),
        ({"alpha_pattern": {"query|value": 3}}, True),
    ],
)
def test_patterns_of_unknown_peft_versions_are_refused_if_ambiguous(
    tmp_path: Path, patterns: dict[str, Any], differ: bool
) -> None:
    folder = changed(adapter_folder("bert_lora"), tmp_path / "a", config=patterns | {"peft_version": None})
    if differ:
        refused(folder, AdapterError, "and no version", "`: the factor 1.5 before version 0.15 and 0.75 since")
    else:
        imported(folder)
    imported(changed(folder, tmp_path / "b", config={"peft_version": "0.17.0"}))


def test_folders_without_an_adapter_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent", FileError, "no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", FileError, "no `adapter_config.json`")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "merged", FileError, "a whole model, possibly with a merged adapter")
    changed(adapter_folder("bert_lora"), tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    refused(tmp_path / "a", FileError, "has no tensors", "`adapter_model.safetensors` or `adapter_model.bin`")


def test_folders_with_several_adapters_require_a_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        changed(adapter_folder("bert_lora"), tmp_path / name)
    refused(tmp_path, FileError, "the adapters `one`, `two` in it", "`member`")
    bert, _ = bare_bert()
    found = import_peft(tmp_path, bert, base="sha256:0", name="a", member="two").adapter
    assert len(found.placements) == 4


@pytest.mark.parametrize("text", ["", "[]", "{", '{"r": 8}', '{"peft_type": "LORA", "peft_type": "LORA"}'])
def test_invalid_adapter_configs_are_refused(tmp_path: Path, text: str) -> None:
    changed(adapter_folder("bert_lora"), tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text(text)
    refused(tmp_path / "a", FormatError, "adapter_config.json")


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    path = changed(adapter_folder("bert_lora"), tmp_path / "a") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    refused(tmp_path / "a", FormatError, "adapter_model.safetensors")


def test_pickles_that_could_run_code_are_refused(tmp_path: Path) -> None:
    changed(adapter_folder("bert_lora"), tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    code = b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "ran").encode()
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"\x80\x02" + code)
    refused(tmp_path / "a", FormatError, "adapter_model.bin")
    assert not (tmp_path / "ran").exists()
