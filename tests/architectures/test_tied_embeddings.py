"""Embeddings that are the language head, too, in every precision: decoders with caches, and a masked language model.

Quantizers of whole graphs left such a table's second reader with a weight that the graph no longer had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers as hf
from building import QUIET
from captured import captured
from once import once
from tiny_onnx import random_adapter

import adapter_export as ae
from adapter_export.bases.base_forms import base_forms, made_forms
from adapter_export.graph.kinds import houlsby
from adapter_export.numerics.sample_inputs import loss_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.quantise.rewritten import deviations
from adapter_export.torch_backend.base.to_onnx import export_onnx

pytestmark = pytest.mark.extended

_SIZE = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LONGEST = {"max_position_embeddings": 64}
_GPT = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
_WORDS = {"bos_token_id": 1, "eos_token_id": 2}
MODELS: Mapping[str, Callable[[], hf.PreTrainedModel]] = {
    "llama": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(
            **_SIZE, **_LONGEST, **_WORDS, intermediate_size=128, num_key_value_heads=2, tie_word_embeddings=True
        )
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT, **_WORDS, tie_word_embeddings=True)),
    "bert": lambda: hf.BertForMaskedLM(
        hf.BertConfig(**_SIZE, **_LONGEST, intermediate_size=128, tie_word_embeddings=True)
    ),
}
CLOSEST = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.9, "int8-weights": 0.95, "int4-weights": 0.6}
"""Minimum cosine of an output by precision. Random weights amplify rounding; unrelated logits would have about 0.1."""


def _write(folder: Path, name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in parameter.lower() or "ln_" in parameter else 0.0, 0.2)
    model.save_pretrained(folder / "hf")
    if name == "bert":
        export_onnx(captured(folder / "hf", hf.BertForMaskedLM), folder / "base.onnx")
    else:
        base = ae.capture(folder / "hf", folder / "base.pt")
        export_onnx(base.model, folder / "base.onnx")


@pytest.fixture(scope="module", params=MODELS)
def tied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    return open_onnx(once(tmp_path_factory, f"tied_{request.param}", partial(_write, name=request.param)) / "base.onnx")


def test_every_form_of_the_base_computes_nearly_the_same(tied: OnnxBase) -> None:
    skipped: dict[str, str] = {}
    names = []
    for form, made in made_forms(tied, list(base_forms()), skipped):
        names.append(form.name)
        for each in deviations(tied, made, loss_cases(tied.inputs, tied.lengths)):
            assert each.cosine > CLOSEST[form.precision.name], (form.name, str(each))
    assert (len(names), skipped) == (18, {})


@pytest.mark.parametrize(
    "options",
    [
        {"base_precision": "fp16"},
        {"base_precision": "int8"},
        {"base_precision": "int4-weights", "int8_embeddings": True, "optimize": True},
    ],
    ids=lambda options: options["base_precision"],
)
def test_a_bundle_is_built_in_all_variants(tied: OnnxBase, options: Mapping[str, object], tmp_path: Path) -> None:
    adapters = [random_adapter(name, houlsby(), tied) for name in "ab"]
    bundle = ae.build(tied.path, adapters, tmp_path / "bundle", variants=("all",), reporter=QUIET, **options)
    assert bundle.manifest.base_precision == options["base_precision"]
    assert {"model.onnx", "model.inputs.onnx", "model.bank.onnx"} <= {path.name for path in bundle.folder.iterdir()}
