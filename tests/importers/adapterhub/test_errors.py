"""Unsupported and faulty folders: a named error each, which lists all faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import packed
import pytest
from adapterhub_bases import FIXTURES, Made, import_adapterhub
from safetensors.numpy import load_file, save_file

from adapter_export.errors import (
    AdapterError,
    AdapterExportError,
    FileError,
    FormatError,
    TensorError,
    UsageError,
    VersionError,
)
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_folder import choose
from adapter_export.plugins.formats.importers.tensor_map import Imported
from adapter_export.torch_backend.base.pickles import read_torch_file

Copy = Callable[[str], Path]
REFUSED = json.loads((packed.FIXTURES / "adapterhub" / "refused_configs.json").read_text())


def load(folder: Path, bert: Made, **options: Any) -> Imported:
    return import_adapterhub(folder, bert.sites, name="a", base=bert.source.fingerprint, **options)


def edit(folder: Path, file: str = "adapter_config.json", **changes: Any) -> Path:
    """Change the top of a JSON file; `config` is merged into the one that is there, None takes a field away."""
    path = folder / file
    document = json.loads(path.read_text())
    inner = {**document["config"], **changes.pop("config", {})}
    document = {**document, **changes, "config": inner}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    return folder


def retensor(
    folder: Path, change: Callable[[dict[str, np.ndarray]], object], file: str = "adapter.safetensors"
) -> Path:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    return folder


PREFIX = r"\(1 − λ\)·attention\(q, K, V\) \+ λ·attention\(q, P_k, P_v\).*found `prefix_tuning`"
REASONS = {
    "prefix_tuning": (PREFIX, "Train `scaled_par_bn`"),
    "mam": (PREFIX, "Train `scaled_par_bn`"),
    "unipelt": (PREFIX, "Train `scaled_par_bn`"),
    "prompt_tuning": (r"reads \[P; x\].*found `prompt_tuning`", "Train `scaled_par_bn` or LoRA"),
    "loreft": (r"Rᵀ\(W y \+ b − R y\) only to the first and last tokens.*found `reft`", "Train `adapter_plus`"),
    "vera": ("VeRA without its shared matrices", "`AutoAdapterModel`"),
}


class TestConfigs:
    @pytest.mark.parametrize("kind", REASONS)
    def test_methods_that_cannot_be_expressed_are_refused_by_name(self, kind: str, copied: Copy, bert: Made) -> None:
        folder = copied("bert/seq_bn")
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "config": REFUSED[kind]}))
        found, fix = REASONS[kind]
        with pytest.raises(AdapterError, match=rf"{found}.*{fix}"):
            load(folder, bert)

    def test_glow_is_refused(self, copied: Copy, bert: Made) -> None:
        folder = edit(copied("bert/seq_bn"), config={"inv_adapter": "glow", "inv_adapter_reduction_factor": 2})
        with pytest.raises(AdapterError, match=r"`glow`.*AdapterHub's own `glow` fails in every forward pass"):
            load(folder, bert)

    def test_options_that_are_not_known_are_all_named(self, copied: Copy, bert: Made) -> None:
        folder = edit(copied("bert/seq_bn"), config={"rotary": True, "twist": 3})
        with pytest.raises(FormatError, match=r"unknown options; found `rotary`, `twist`"):
            load(folder, bert)

    def test_unknown_methods_are_refused(self, copied: Copy, bert: Made) -> None:
        with pytest.raises(FormatError, match="an unknown method; found `architecture`: `hydra`"):
            load(edit(copied("bert/seq_bn"), config={"architecture": "hydra"}), bert)

    @pytest.mark.parametrize("version", ["adapters.1.4.0", "adapters.2.0", "4.0.0"])
    def test_newer_versions_are_refused(self, version: str, copied: Copy, bert: Made) -> None:
        with pytest.raises(VersionError, match=rf"newer version.*found `{version}`.*pip install --upgrade"):
            load(edit(copied("bert/seq_bn"), version=version), bert)

    @pytest.mark.parametrize("version", ["adapters.1.0.0.dev0", "3.2.1", "2.0.0a1", "adapters.1.3.9"])
    def test_older_versions_are_read(self, version: str, copied: Copy, bert: Made) -> None:
        assert load(edit(copied("bert/seq_bn"), version=version), bert).adapter.kind == "seq_bn"

    def test_invalid_versions_are_refused(self, copied: Copy, bert: Made) -> None:
        with pytest.raises(FormatError, match="has no valid version; found `latest`"):
            load(edit(copied("bert/seq_bn"), version="latest"), bert)

    def test_a_whole_number_as_scaling_is_refused_as_the_library_does(self, copied: Copy, bert: Made) -> None:
        with pytest.raises(FormatError, match=r"`scaling`: AdapterHub's library rejects an integer.*Write `4\.0`"):
            load(edit(copied("bert/seq_bn"), config={"scaling": 4}), bert)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"scaling": "twice"}, "unknown scaling; found `twice`"),
            ({"non_linearity": "gelu_10"}, "an activation that has no op here; found `gelu_10`"),
            ({"non_linearity": "prelu"}, "an activation that has no op here; found `prelu`"),
            ({"residual_before_ln": "post_add", "original_ln_before": False}, "nothing is added before the adapter"),
            ({"residual_before_ln": "later"}, "unknown `residual_before_ln`; found `later`"),
            ({"mh_adapter": False, "output_adapter": False}, "the configuration acts nowhere"),
            ({"reduction_factor": {"0": 8}}, "layer 1 has no reduction factor"),
            ({"reduction_factor": 0}, "a reduction factor is not a positive number"),
            ({"reduction_factor": 1e-320}, "a reduction factor is not a positive number"),
            ({"phm_layer": True, "phm_dim": 3, "shared_phm_rule": False}, "cannot be cut into equal blocks"),
        ],
    )
    def test_unsupported_config_values_are_named(
        self, change: dict[str, Any], message: str, copied: Copy, bert: Made
    ) -> None:
        with pytest.raises(AdapterError, match=message):
            load(edit(copied("bert/seq_bn"), config=change), bert)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ln_before": "yes"}, r"`\$\.ln_before`"),
            ({"reduction_factor": None}, r"`\$\.reduction_factor`"),
            ({"leave_out": "all"}, r"`\$\.leave_out`"),
            ({"mh_adapter": 1}, r"`\$\.mh_adapter`"),
            ({"non_linearity": {"": 0}}, r"`\$\.non_linearity`"),
        ],
    )
    def test_config_values_of_wrong_types_are_refused(
        self, change: dict[str, Any], message: str, copied: Copy, bert: Made
    ) -> None:
        folder = edit(copied("bert/seq_bn"), config=change)
        for _ in range(2):
            with pytest.raises(FormatError, match=message):
                load(folder, bert)
            edit(folder, version=None)

    def test_missing_config_fields_are_listed(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/seq_bn")
        path = folder / "adapter_config.json"
        document = json.loads(path.read_text())
        del document["config"]["non_linearity"], document["config"]["reduction_factor"]
        path.write_text(json.dumps(document))
        with pytest.raises(FormatError, match="no key `reduction_factor`; no key `non_linearity`"):
            load(folder, bert)

    @pytest.mark.parametrize("field", ["config", "name", "hidden_size"])
    def test_incomplete_adapter_configs_are_refused(self, field: str, copied: Copy, bert: Made) -> None:
        folder = copied("bert/seq_bn")
        path = folder / "adapter_config.json"
        document = json.loads(path.read_text())
        del document[field]
        path.write_text(json.dumps(document))
        with pytest.raises(FormatError, match="is not the config of an adapter; found keys"):
            load(folder, bert)


class TestDefects:
    def test_a_compacter_without_its_shared_rule_is_refused(self, bert: Made) -> None:
        with pytest.raises(AdapterError, match=r"Compacter without its shared tensors.*bare model"):
            load(FIXTURES / "bert/compacter_bare_without_rule", bert)

    def test_a_defective_norm_of_the_plugin_interface_is_refused(self, bert: Made) -> None:
        with pytest.raises(
            AdapterError, match=r"defect of AdapterHub's plug-in interface: every layer applied the norm"
        ):
            load(FIXTURES / "bert/plugin_seq_bn", bert)

    def test_an_interface_that_names_no_residual(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/plugin_par_bn")
        _edit_interface(folder, layer_pre_ffn=None)
        with pytest.raises(AdapterError, match="reads the residual stream, which the plug-in interface does not name"):
            load(folder, bert)

    def test_an_interface_that_reads_behind_the_norm_is_refused(
        self, copied: Copy, made: Callable[[str], Made]
    ) -> None:
        gpt2, folder = made("gpt2"), copied("gpt2/par_bn")
        interface = {"layer_pre_ffn": "mlp", "layer_pre_self_attn": "attn", "layer_ln_1": None, "layer_ln_2": None}
        (folder / "adapter_interface.json").write_text(json.dumps({"interface": interface}))
        with pytest.raises(AdapterError, match=r"used the sublayer's normalized input.*found `mlp` at `layers\.0"):
            load(folder, gpt2)
        _edit_interface(folder, layer_pre_ffn="ln_2")
        assert load(folder, gpt2).adapter.kind == "par_bn"

    def test_an_interface_with_an_unknown_norm_is_refused(self, copied: Copy, made: Callable[[str], Made]) -> None:
        folder = copied("gpt2/par_bn")
        interface = {"layer_pre_ffn": "ln_2", "layer_pre_self_attn": "ln_1", "layer_ln_2": "post_feedforward_layernorm"}
        (folder / "adapter_interface.json").write_text(json.dumps({"interface": interface}))
        with pytest.raises(AdapterError, match="acted after the output projection, possibly before a norm"):
            load(folder, made("gpt2"))

    def test_an_interface_without_the_norm_of_the_base_is_refused(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/plugin_seq_bn")
        _edit_interface(folder, layer_ln_1=None, layer_ln_2=None)
        with pytest.raises(AdapterError, match="read the sum before the norm that follows it in this base"):
            load(folder, bert)

    @pytest.mark.parametrize(
        ("model", "change"),
        [("albert", {"mh_adapter": True}), ("gptj", {}), ("whisper", {"inv_adapter": "nice"}), ("xmod", {})],
    )
    def test_models_that_the_library_changes_are_refused(
        self, model: str, change: dict[str, Any], copied: Copy, bert: Made
    ) -> None:
        with pytest.raises(
            AdapterError,
            match=rf"AdapterHub (swaps|passes|applies|removes).* this model.*found `model_type`: `{model}`",
        ):
            load(edit(copied("bert/seq_bn"), model_type=model, config=change), bert)

    def test_a_norm_that_lies_under_two_names_and_differs(self, copied: Copy, bert: Made) -> None:
        folder = _as_safetensors(copied("bert/ln_before"))
        name = "bert.encoder.layer.0.output.adapters.task.adapter_down.0.weight"
        retensor(folder, lambda tensors: tensors.update({name: tensors[name] + 1}))
        with pytest.raises(TensorError, match="the file contains a tensor under two names with different values"):
            load(folder, bert)

    def test_unused_invertible_adapters_of_old_task_adapters_are_noted(self, copied: Copy, bert: Made) -> None:
        folder = edit(copied("bert/seq_bn"), type="text_task", config={"inv_adapter": "nice"})
        found = load(folder, bert)
        assert "embeddings" not in found.adapter.placements
        assert any("old task adapters do not use" in note for note in found.notes)

    def test_lora_before_1_1_is_loaded_without_its_factor(self, bert: Made) -> None:
        (note,) = load(FIXTURES / "bert/lora_before_1_1", bert).notes
        assert note.startswith("`adapters.1.0.1` trained without the factor alpha/r: alpha becomes 4, not 16")


def _edit_interface(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_interface.json"
    document = json.loads(path.read_text())
    document["interface"] |= changes
    path.write_text(json.dumps(document))


def _as_safetensors(folder: Path) -> Path:
    save_file(read_torch_file(folder / "pytorch_adapter.bin"), folder / "adapter.safetensors")
    (folder / "pytorch_adapter.bin").unlink()
    return folder


class TestTensors:
    PREFIX = "bert.encoder.layer.1.output.adapters.task"

    def test_all_that_is_missing_left_over_or_misshapen_is_listed(self, copied: Copy, bert: Made) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            del tensors[f"{self.PREFIX}.adapter_up.bias"], tensors[f"{self.PREFIX}.adapter_down.0.weight"]
            tensors[f"{self.PREFIX}.adapter_up.weight"] = np.zeros((3, 3), np.float32)
            tensors["bert.encoder.layer.0.output.adapters.task.adapter_up.bias"][2] = np.nan
            tensors[f"{self.PREFIX}.gate.weight"] = np.zeros((1, 32), np.float32)
            tensors["bert.encoder.layer.0.output.adapters.other.adapter_up.bias"] = np.zeros(32, np.float32)

        with pytest.raises(TensorError) as caught:
            load(retensor(copied("bert/seq_bn"), change), bert)
        for fault in (
            "6 tensors",
            f"`{self.PREFIX}.adapter_up.bias` is missing",
            f"`{self.PREFIX}.adapter_down.0.weight` is missing",
            f"`{self.PREFIX}.adapter_up.weight` has shape [3, 3], not [32, 4]",
            "`bert.encoder.layer.0.output.adapters.task.adapter_up.bias` contains 1 NaN, Inf or numbers beyond float32",
            f"`{self.PREFIX}.gate.weight` is left over",
            "`bert.encoder.layer.0.output.adapters.other.adapter_up.bias` is left over",
        ):
            assert fault in str(caught.value), fault

    def test_missing_layers_are_named(self, copied: Copy, bert: Made) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            for name in [name for name in tensors if ".layer.1." in name]:
                del tensors[name]

        message = r"every tensor of `layers\.1\.ffn` \(`encoder\.layer\.1\.output\.dense`\) is missing"
        with pytest.raises(TensorError, match=message):
            load(retensor(copied("bert/seq_bn"), change), bert)

    def test_tensors_of_a_left_out_layer_are_refused(self, copied: Copy, bert: Made) -> None:
        with pytest.raises(TensorError, match=r"4 tensors.*layer\.0\.output.*is left over"):
            load(edit(copied("bert/seq_bn"), config={"leave_out": [0]}), bert)

    def test_lora_without_a_module_in_one_layer_is_refused(self, copied: Copy, bert: Made) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            for name in [name for name in tensors if "layer.1.attention.self.value" in name]:
                del tensors[name]

        with pytest.raises(TensorError, match=r"every tensor of `attention\.value` in layer 1 is missing"):
            load(retensor(copied("bert/lora"), change), bert)

    def test_lora_with_fewer_modules_than_its_config_is_refused(self, copied: Copy, bert: Made) -> None:
        folder = edit(copied("bert/lora"), config={"output_lora": True})
        with pytest.raises(TensorError, match="each layer has 2 adapted linear layers, and the config requires 3"):
            load(folder, bert)

    def test_lora_tensors_of_another_rank_are_refused(self, copied: Copy, bert: Made) -> None:
        with pytest.raises(TensorError, match=r"lora_A` has shape \[4, 32\], not \[5, 32\]"):
            load(edit(copied("bert/lora"), config={"r": 5}), bert)

    def test_integer_weights_are_refused(self, copied: Copy, bert: Made) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            tensors[f"{self.PREFIX}.adapter_up.bias"] = np.zeros(32, np.int64)

        with pytest.raises(TensorError, match=r"adapter_up\.bias` is int64, not one of float16, float32, float64"):
            load(retensor(copied("bert/seq_bn"), change), bert)

    @pytest.mark.parametrize(("dtype", "loss"), [("float16", "without loss"), ("float64", "rounded once")])
    def test_other_float_types_are_converted_with_a_note(self, dtype: str, loss: str, copied: Copy, bert: Made) -> None:
        folder = retensor(
            copied("bert/seq_bn"),
            lambda tensors: tensors.update({name: tensor.astype(dtype) for name, tensor in tensors.items()}),
        )
        found = load(folder, bert)
        assert all(tensor.dtype == np.float32 for tensor in found.adapter.weights.values())
        assert any(dtype in note and loss in note for note in found.notes)


class TestBases:
    def test_base_of_another_width_is_refused(self, bert: Made) -> None:
        narrow = replace(bert.sites, width=16)
        with pytest.raises(AdapterError, match="was trained on a base of another width; found `hidden_size`: 32"):
            import_adapterhub(FIXTURES / "bert/seq_bn", narrow, name="a", base="x")

    def test_sites_that_the_base_lacks_are_all_listed(self, copied: Copy, bert: Made) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            for layer in (7, 8):
                for name in [name for name in tensors if ".layer.0." in name]:
                    tensors[name.replace(".layer.0.", f".layer.{layer}.")] = tensors[name]

        with pytest.raises(
            AdapterError, match=r"modules that the base does not have; found `.*layer\.7\.output`, `.*layer\.8\."
        ):
            load(retensor(copied("bert/seq_bn"), change), bert)

    def test_linear_layers_that_the_base_lacks_are_refused(self, made: Callable[[str], Made]) -> None:
        with pytest.raises(AdapterError, match="acts on modules that the base does not have"):
            load(FIXTURES / "distilbert/lora", made("gpt2"))

    def test_adapters_after_missing_cross_attention_are_refused(self, copied: Copy, bert: Made) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            for name in list(tensors):
                tensors[name.replace(".output.adapters", ".crossattention.output.adapters")] = tensors.pop(name)

        with pytest.raises(AdapterError, match="acts on modules that the base does not have"):
            load(retensor(copied("bert/seq_bn"), change), bert)

    def test_modules_without_paths_are_matched_by_number(self, bert: Made) -> None:
        bare = replace(bert.sites, sites=tuple(replace(site, path=None) for site in bert.sites))
        for case in ("double_seq_bn", "lora_everywhere"):
            path, base = FIXTURES / "bert" / case, bert.source.fingerprint
            with pytest.raises(AdapterError, match=r"some of its 0 .* with a path\. If .*by_number=True"):
                import_adapterhub(path, bare, name="a", base=base)
            found = import_adapterhub(path, bare, name="a", base=base, by_number=True)
            assert any("matched by number" in note for note in found.notes)
            expected = load(path, bert).adapter
            assert found.adapter.placements == expected.placements
            assert all(np.array_equal(found.adapter.weights[name], one) for name, one in expected.weights.items())

    @pytest.mark.parametrize("prefix", ["", "model.", "a.b.c."])
    def test_tensor_names_may_have_any_prefix(self, prefix: str, copied: Copy, bert: Made) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            for name in list(tensors):
                tensors[prefix + name.removeprefix("bert.")] = tensors.pop(name)

        found = load(retensor(copied("bert/seq_bn"), change), bert)
        assert found.adapter.placements == load(FIXTURES / "bert/seq_bn", bert).adapter.placements


class TestHeads:
    def test_head_that_uses_the_pooler_is_refused(self, bert: Made) -> None:
        folder = FIXTURES / "bert/head_pooler"
        with pytest.raises(AdapterError, match=r"pooler, whose weights are not in the file.*`without_head=True`"):
            load(folder, bert)
        found = load(folder, bert, with_head=False)
        assert found.adapter.head is None
        assert "its head was left out" in found.notes

    @pytest.mark.parametrize("kind", ["dependency_parsing", "masked_lm", "causal_lm", "oracle"])
    def test_unsupported_kinds_of_heads_are_refused(self, kind: str, copied: Copy, bert: Made) -> None:
        folder = edit(copied("bert/head_two_layers"), "head_config.json", config={"head_type": kind})
        with pytest.raises(AdapterError, match=rf"a kind of head that cannot be expressed; found `{kind}`"):
            load(folder, bert)

    @pytest.mark.parametrize(
        ("file", "config", "error", "message"),
        [
            (
                "head_config.json",
                {"layers": 10**9},
                FormatError,
                r"invalid number of layers; found `layers`: 1000000000",
            ),
            (
                "head_config.json",
                {"head_type": {}},
                AdapterError,
                r"a kind of head that cannot be expressed; found `\{\}`",
            ),
            (
                "head_config.json",
                {"dropout_prob": "h"},
                FormatError,
                r"has an invalid dropout rate; found `dropout_prob`: `h`",
            ),
            (
                "adapter_config.json",
                {"architecture": []},
                FormatError,
                r"an unknown method; found `architecture`: `\[\]`",
            ),
        ],
    )
    def test_hostile_values_end_soon_in_a_named_error(
        self, file: str, config: dict[str, Any], error: type[AdapterExportError], message: str, copied: Copy, bert: Made
    ) -> None:
        folder, start = edit(copied("bert/head_two_layers"), file, config=config), perf_counter()
        with pytest.raises(error, match=message):
            load(folder, bert)
        assert perf_counter() - start < 10

    def test_the_head_of_a_single_head_model_is_refused(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/head_two_layers")
        path = folder / "head_config.json"
        document = {**json.loads(path.read_text()), "config": None, "model_class": "BertForSequenceClassification"}
        path.write_text(json.dumps(document))
        with pytest.raises(AdapterError, match=r"a single-head model.*`BertForSequenceClassification`"):
            load(folder, bert)

    @pytest.mark.parametrize(
        "labels", [{"a": 0, "b": 1}, {"a": 0, "b": 1, "c": 3}, {"a": 0, "b": 0, "c": 2}, ["a", "b", "c"]]
    )
    def test_labels_that_do_not_match_classes_are_refused(self, labels: object, copied: Copy, bert: Made) -> None:
        folder = edit(copied("bert/head_two_layers"), "head_config.json", config={"label2id": labels})
        with pytest.raises(FormatError, match="labels and classes differ"):
            load(folder, bert)

    def test_missing_and_unused_head_tensors_are_listed(self, copied: Copy, bert: Made) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            del tensors["heads.task.4.bias"]
            tensors["heads.task.7.bias"] = tensors["heads.task.1.bias"]

        folder = retensor(copied("bert/head_two_layers"), change, "model_head.safetensors")
        with pytest.raises(
            TensorError, match=r"`heads\.task\.4\.bias` is missing; `heads\.task\.7\.bias` is left over"
        ):
            load(folder, bert)

    def test_other_heads_whose_names_begin_alike_are_left_out(self, copied: Copy, bert: Made) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            tensors["heads.task2.1.bias"] = tensors["heads.task.1.bias"]

        folder = retensor(copied("bert/head_two_layers"), change, "model_head.safetensors")
        assert any("also contains `task2`" in note for note in load(folder, bert).notes)

    def test_labels_are_in_the_order_of_the_logits(self, copied: Copy, bert: Made) -> None:
        labels = {"c": 2, "a": 0, "b": 1}
        folder = edit(copied("bert/head_two_layers"), "head_config.json", config={"label2id": labels})
        head = load(folder, bert).adapter.head
        assert head is not None
        assert head.labels == ("a", "b", "c")


class TestFolders:
    def test_missing_folders_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="is not an AdapterHub folder; found no such folder"):
            choose(tmp_path / "none")

    def test_folders_without_an_adapter_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(FileError, match=r"is not an AdapterHub folder; found `notes\.txt`"):
            choose(tmp_path)

    def test_folders_without_weights_are_refused(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/seq_bn")
        (folder / "adapter.safetensors").unlink()
        with pytest.raises(FileError, match=r"has no weights.*`adapter\.safetensors` or `pytorch_adapter\.bin`"):
            load(folder, bert)

    def test_peft_folders_are_recognised_and_refused(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/lora")
        (folder / "adapter.safetensors").rename(folder / "adapter_model.safetensors")
        with pytest.raises(FileError, match=r"is a PEFT folder.*Run `import_peft\("):
            load(folder, bert)

    def test_two_different_weight_files_are_refused(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/seq_bn")
        shutil.copy(FIXTURES / "bert/seq_bn_bare_bin/pytorch_adapter.bin", folder)
        with pytest.raises(FormatError, match="two weight files differ"):
            load(folder, bert)

    def test_folders_with_several_adapters_require_a_name(self, copied: Copy) -> None:
        folder = copied("bert/setup_stack")
        assert choose(folder) == choose(folder, "c") == folder
        (folder / "adapter_setup.json").unlink()
        with pytest.raises(UsageError, match="contains several adapters; found `a`, `b`"):
            choose(folder)
        with pytest.raises(UsageError, match="contains no adapter with this name; found `c`; expected `a`, `b`"):
            choose(folder, "c")
        assert choose(folder, "b") == folder / "b"

    def test_fusion_layer_without_adapters_is_refused(self) -> None:
        with pytest.raises(UsageError, match="a fusion layer needs the adapters that it fuses"):
            choose(FIXTURES / "bert/fusion_dynamic/a,b")

    @pytest.mark.parametrize("file", ["adapter_config.json", "adapter.safetensors"])
    @pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\x80\x04."])
    def test_damaged_files_are_named(self, file: str, data: bytes, copied: Copy, bert: Made) -> None:
        folder = copied("bert/seq_bn")
        (folder / file).write_bytes(data)
        with pytest.raises(AdapterExportError, match=file):
            load(folder, bert)

    def test_pickles_that_could_run_code_are_refused(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/seq_bn_bare_bin")
        (folder / "pytorch_adapter.bin").write_bytes(
            b"\x80\x02cposix\nsystem\nq\x00X\x02\x00\x00\x00lsq\x01\x85q\x02R."
        )
        with pytest.raises(FormatError, match=r"could run code when loaded; found `posix\.system`"):
            load(folder, bert)


class TestFusions:
    def test_empty_compositions_are_refused(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/fusion_static")
        (folder / "adapter_setup.json").write_text('{"adapter_setup": null}')
        with pytest.raises(FormatError, match="contains no composition; found keys adapter_setup"):
            fuse(folder, bert)

    def test_missing_fusion_layers_are_named(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/fusion_static")
        shutil.rmtree(folder / "a,b")
        with pytest.raises(FileError, match=r"a,b/adapter_fusion_config\.json"):
            fuse(folder, bert)

    def test_unknown_fusion_options_are_refused(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/fusion_static")
        edit(folder / "a,b", "adapter_fusion_config.json", config={"heads": 4})
        with pytest.raises(FormatError, match="unknown key `heads`"):
            fuse(folder, bert)

    def test_missing_and_unused_fusion_tensors_are_listed(self, copied: Copy, bert: Made) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            prefix = "bert.encoder.layer.1.output.adapter_fusion_layer.a,b"
            del tensors[f"{prefix}.query.weight"], tensors[f"{prefix}.value.weight"]
            tensors[f"{prefix}.dense.weight"] = np.zeros((1, 32), np.float32)

        folder = copied("bert/fusion_dynamic")
        retensor(folder / "a,b", change, "model_adapter_fusion.safetensors")
        with pytest.raises(TensorError, match=r"3 tensors.*query\.weight` is missing.*dense\.weight` is left over"):
            fuse(folder, bert)

    def test_tensors_of_other_fusions_are_left_out(self, copied: Copy, bert: Made) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            for name in list(tensors):
                tensors[name.replace(".a,b.", ".a,bc.")] = tensors[name]

        folder = copied("bert/fusion_dynamic")
        retensor(folder / "a,b", change, "model_adapter_fusion.safetensors")
        assert "10 tensors of other fusions in the file were ignored" in fuse(folder, bert).notes

    def test_fusion_members_at_different_places_are_refused(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/fusion_static")
        edit(folder / "b", config={"leave_out": [0]})
        with pytest.raises(AdapterError, match="its members act in different places"):
            fuse(folder, bert)

    def test_only_bottlenecks_are_fused(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/fusion_static")
        shutil.rmtree(folder / "b")
        shutil.copytree(FIXTURES / "bert/lora", folder / "b")
        with pytest.raises(AdapterError, match=r"LoRA and IA3 are stacked.*found `Fuse` of `a`, `b`"):
            fuse(folder, bert)

    def test_gates_of_members_have_no_effect_and_the_temperature_stays(self, copied: Copy, bert: Made) -> None:
        folder = copied("bert/fusion_temperature")
        edit(folder / "b", config={"use_gating": True})

        def change(tensors: dict[str, np.ndarray]) -> None:
            for layer in (0, 1):
                prefix = f"bert.encoder.layer.{layer}.output.adapters.b.gate"
                tensors |= {f"{prefix}.weight": np.ones((1, 32), np.float32), f"{prefix}.bias": np.ones(1, np.float32)}

        retensor(folder / "b", change)
        found = fuse(folder, bert)
        assert any("gates and norms: those of `b` have no effect" in note for note in found.notes)
        assert any("temperature decreases from 50" in note for note in found.notes)
        plain = fuse(FIXTURES / "bert/fusion_temperature", bert)
        assert found.adapter.graphs == plain.adapter.graphs


def fuse(folder: Path, bert: Made) -> Imported:
    return import_adapterhub(folder, bert.sites, name="a", base=bert.source.fingerprint)
