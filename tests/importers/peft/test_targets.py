"""Modules selected by a config: the same as in PEFT."""

from __future__ import annotations

import pytest
from peft_folders import CASES, adapter_folder, bare_bert, read_config

from adapter_export.plugins.formats.importers.peft.peft_folder import read_folder
from adapter_export.plugins.formats.importers.peft.peft_options import read_options, targeted
from adapter_export.torch_backend.base.pickles import read_torch_file

PATHS = [f"model.layers.{layer}.{name}" for layer in range(3) for name in ("attn.q", "attn.qq", "mlp.up")]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"target_modules": ["q"]}, ["0.attn.q", "1.attn.q", "2.attn.q"]),
        ({"target_modules": ["attn.q", "up"], "layers_to_transform": [1]}, ["1.attn.q", "1.mlp.up"]),
        ({"target_modules": ["q"], "layers_to_transform": 2, "layers_pattern": "layers"}, ["2.attn.q"]),
        ({"target_modules": ["q"], "layers_to_transform": [2], "layers_pattern": ["h"]}, []),
        ({"target_modules": ["model.layers.0.mlp.up"]}, ["0.mlp.up"]),
        ({"target_modules": r".*\.[12]\..*q"}, ["1.attn.q", "1.attn.qq", "2.attn.q", "2.attn.qq"]),
        ({"target_modules": ["q"], "exclude_modules": ["layers.1.attn.q"]}, ["0.attn.q", "2.attn.q"]),
        (
            {"target_modules": ["q", "up"], "exclude_modules": r".*\.0\..*"},
            ["1.attn.q", "1.mlp.up", "2.attn.q", "2.mlp.up"],
        ),
        ({"target_modules": ["q", "up"], "modules_to_save": ["mlp"]}, ["0.attn.q", "1.attn.q", "2.attn.q"]),
        ({"target_modules": "all-linear"}, []),
        ({}, []),
    ],
)
def test_configs_select_the_modules_of_peft(config: dict[str, object], expected: list[str]) -> None:
    options = read_options({"peft_type": "LORA", **config}, "a")
    assert list(targeted(options, PATHS)) == [f"model.layers.{path}" for path in expected]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("bert") and "classify" not in name])
def test_selected_modules_are_those_that_peft_saved(name: str) -> None:
    folder = read_folder(adapter_folder(name), read_pickle=read_torch_file)
    sites, _ = bare_bert()
    prefix = "bert." if read_config(adapter_folder(name))["task_type"] else ""
    paths = [f"{prefix}{site.path}" for site in sites]
    saved = {
        key.removeprefix("base_model.model.")
        for key in read_folder(adapter_folder(name), read_pickle=read_torch_file).tensors
    }
    expected = [path for path in paths if any(key.startswith((f"{path}.lora_A", f"{path}.ia3")) for key in saved)]
    assert sorted(targeted(folder.options, paths)) == sorted(expected)
