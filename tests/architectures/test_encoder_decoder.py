"""Encoders with decoders, each through the whole pipeline: folder or module, archive, graph, slots, bank.

What must come out is computed by the live torch model with hooks at module paths that a person wrote down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from acting import with_hooks
from bank_rows import assert_rows_are_those_of_slots
from building import build_bundle
from exported_bases import by_older_exporter
from heads import heads, with_head
from slotted import in_slots
from tiers import extended
from tiny_onnx import random_adapter
from torch import Tensor, nn

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import LoraOptions, houlsby, lora
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Bundle
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.base.huggingface_folder import capture_folder
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base, save_base
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.torch_backend.torch_runner import TorchRunner

SHAPES = ((3, 7, 5), (1, 4, 9))
"""Batch, tokens of the encoder, tokens of the decoder."""

LENGTHS = ("sequence", "decoder_sequence")
TOLERANCE = 1e-4
STD = 0.15
EVERYWHERE = houlsby.changed(sublayers=("attention", "cross_attention", "ffn"))
CROSSING = lora(LoraOptions(modules=("cross_attention.key", "cross_attention.query"), rank=2))
SIZE = {"d_model": 16, "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | {
    f"{part}_{name}": count
    for part in ("encoder", "decoder")
    for name, count in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
}
DECODER = {"decoder_start_token_id": 1}


def _t5() -> nn.Module:
    config = hf.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50)
    return hf.T5ForConditionalGeneration(config)


def _bart() -> nn.Module:
    return hf.BartModel(hf.BartConfig(**SIZE, **DECODER, max_position_embeddings=40))


def _marian() -> nn.Module:
    return hf.MarianModel(hf.MarianConfig(**SIZE, **DECODER, max_position_embeddings=40))


def _whisper() -> nn.Module:
    positions = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 12}
    return hf.WhisperModel(hf.WhisperConfig(**SIZE, **DECODER, **positions))


BART = """
    encoder.layers.0.attention        encoder.layers.0.self_attn.out_proj
    encoder.layers.0.ffn              encoder.layers.0.fc2
    decoder.layers.0.attention        decoder.layers.0.self_attn.out_proj
    decoder.layers.0.cross_attention  decoder.layers.0.encoder_attn.out_proj
    decoder.layers.0.ffn              decoder.layers.0.fc2
"""
T5 = """
    encoder.layers.0.attention        encoder.block.0.layer.0.SelfAttention.o
    encoder.layers.0.ffn              encoder.block.0.layer.1.DenseReluDense.wo
    decoder.layers.0.attention        decoder.block.0.layer.0.SelfAttention.o
    decoder.layers.0.cross_attention  decoder.block.0.layer.1.EncDecAttention.o
    decoder.layers.0.ffn              decoder.block.0.layer.2.DenseReluDense.wo
"""
MODELS: Mapping[str, tuple[Callable[[], nn.Module], str, bool]] = {
    "t5": (_t5, T5, False),
    "bart": (_bart, BART, False),
    "marian": (_marian, BART, True),
    "whisper": (_whisper, BART, True),
}
"""Recipe of each base, its sites with the modules of their results, and whether it passes through a folder."""

LINEARS = [
    *(f"encoder.layers.0.attention.{name}" for name in ("query", "key", "value", "output")),
    *(f"encoder.layers.0.ffn.{name}" for name in ("up", "down")),
    *(f"decoder.layers.0.attention.{name}" for name in ("query", "key", "value", "output")),
    *(f"decoder.layers.0.cross_attention.{name}" for name in ("query", "key", "value", "output")),
    *(f"decoder.layers.0.ffn.{name}" for name in ("up", "down")),
]


def listed(name: str) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in MODELS[name][1].strip().splitlines()]


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = MODELS[name][0]().eval()
    with torch.no_grad():
        for parameter in (one for one in module.parameters() if one.requires_grad):  # the others are sines
            parameter.copy_(torch.randn(parameter.shape) * STD + (parameter if parameter.dim() == 1 else 0.0))
    return module


def inputs_of(name: str, batch: int, tokens: int, decoder_tokens: int) -> dict[str, Tensor]:
    """Random inputs; the last texts of a batch end in padding."""
    mask, decoder_mask = (torch.ones(batch, length, dtype=torch.int64) for length in (tokens, decoder_tokens))
    mask[-1, -2:] = decoder_mask[-1, -1:] = 0
    texts = {"input_ids": torch.randint(3, 50, mask.shape), "attention_mask": mask}
    sound = {"input_features": torch.randn(batch, 8, 20)}
    decoder = {"decoder_input_ids": torch.randint(3, 50, decoder_mask.shape), "decoder_attention_mask": decoder_mask}
    return (sound if name == "whisper" else texts) | decoder


@dataclass(frozen=True)
class AdaptedBase:
    """A base in every form, and an adapter with random weights at all of its sublayers."""

    name: str
    module: nn.Module
    in_torch: TorchBase
    in_onnx: OnnxBase
    adapter: Adapter


@pytest.fixture(scope="module", params=["t5", "marian", "whisper"])
@extended
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AdaptedBase:
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    module = built(name)
    if MODELS[name][2]:
        module.save_pretrained(folder / "hf")
        capture_folder(folder / "hf", folder / "model.pt", bare=True)
    else:
        save_base(module, inputs_of(name, 2, 7, 5), folder / "model.pt")
    in_torch = load_base(folder / "model.pt")
    export_onnx(in_torch, folder / "model.onnx")
    in_onnx = open_onnx(folder / "model.onnx")
    return AdaptedBase(name, module, in_torch, in_onnx, random_adapter("a", EVERYWHERE, in_onnx, bottleneck=4))


def test_the_sites_are_those_that_a_person_lists(base: AdaptedBase) -> None:
    in_torch = discover(flow_graph(base.in_torch.flat))
    for sites in (in_torch, base.in_onnx.sites):
        assert [(site.name, site.path) for site in sites.sublayers] == listed(base.name)
        outside = ["lm_head"] if base.name == "t5" else []
        assert [site.name for site in sites.of_roles(("linear",))] == [*LINEARS, *outside]
    assert _facts(in_torch) == _facts(base.in_onnx.sites)


def _facts(sites: SiteMap) -> list[tuple[object, ...]]:
    return [(site.name, site.role, site.layer, site.width_in, site.width, site.path, site.parts) for site in sites]


def test_the_graph_computes_what_the_model_with_hooks_computes(base: AdaptedBase) -> None:
    run = in_slots(base.in_onnx, base.adapter)
    for shape in SHAPES:
        inputs = inputs_of(base.name, *shape)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        wanted = hooked(base.name, base.module, base.adapter, inputs)
        assert np.abs(wanted - hooked(base.name, base.module, None, inputs)).max() > 0.05
        close(run(arrays)[base.in_onnx.outputs[0].name], wanted, inputs)
        found = TorchRunner(base.in_torch).run(arrays, base.adapter)
        close(found[base.in_torch.outputs[0].name], wanted, inputs)


def test_rows_of_a_batch_run_through_different_adapters(base: AdaptedBase) -> None:
    adapters = [
        base.adapter,
        random_adapter("crossing", CROSSING, base.in_onnx),
        random_adapter("decoder", houlsby.changed(sublayers=("decoder.ffn",)), base.in_onnx, bottleneck=2),
    ]
    inputs = {name: value.numpy() for name, value in inputs_of(base.name, 4, 6, 5).items()}
    assert_rows_are_those_of_slots(base.in_onnx, adapters, inputs, tolerance=1e-4)


@pytest.mark.parametrize("base", ["marian"], indirect=True)
def test_a_head_reads_the_tokens_that_the_mask_of_the_decoder_keeps(base: AdaptedBase) -> None:
    adapter = random_adapter("headed", EVERYWHERE, base.in_onnx, bottleneck=4, labels="abc")
    inputs = {name: value.numpy() for name, value in inputs_of(base.name, 2, 6, 6).items()}
    found = in_slots(base.in_onnx, adapter)(inputs)
    real = inputs["decoder_attention_mask"][..., None]
    pooled = (found["last_hidden_state"] * real).sum(1) / real.sum(1)
    wanted = pooled @ adapter.weights["head.classifier.weight"] + adapter.weights["head.classifier.bias"]
    np.testing.assert_allclose(found["logits"], wanted, rtol=0, atol=1e-5)
    for runner in (TorchRunner(base.in_torch), CutRunner(base.in_onnx)):
        np.testing.assert_allclose(runner.run(inputs, adapter)["logits"], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("base", ["marian"], indirect=True)
def test_the_runtime_labels_the_tokens_that_the_mask_of_the_decoder_keeps(base: AdaptedBase, tmp_path: Path) -> None:
    """As many tokens as the encoder has: the shapes of both masks fit."""
    adapter = with_head(base.adapter, "tag", heads(base.in_onnx.sites.width)["tag"])
    cases = input_cases(base.in_onnx.inputs, seed=0, shapes=[dict.fromkeys(("batch", *LENGTHS), 3)])
    build_bundle(base.in_onnx, [adapter], tmp_path / "b", references=CutRunner(base.in_onnx), cases=cases)
    inputs = {name: value.numpy() for name, value in inputs_of(base.name, 2, 6, 6).items()}
    found = Bundle.open(tmp_path / "b").session().classify_tokens(inputs, "tag")
    kept = [[label is not None for label in row] for row in found]
    np.testing.assert_array_equal(kept, inputs["decoder_attention_mask"] == 1)


LEGACY = ("t5", "bart", "whisper")


class Positional(nn.Module):
    """A model behind arguments by position."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)), use_cache=False, return_dict=False)[0]


@pytest.mark.parametrize("name", LEGACY)
def test_a_graph_of_the_older_exporter_matches_the_model_with_hooks(name: str, tmp_path: Path) -> None:
    module, inputs = built(name), inputs_of(name, 2, 7, 5)
    axes = {key: {0: "batch", 1: "decoder" if "decoder" in key else "tokens"} for key in inputs}
    axes |= {"input_features": {0: "batch"}} if name == "whisper" else {}
    base = by_older_exporter(Positional(module, list(inputs)).eval(), inputs, axes, tmp_path)
    assert [site.name for site in base.sites.sublayers] == [site for site, _ in listed(name)]
    adapter = random_adapter("a", EVERYWHERE, base, bottleneck=4)
    run, taken = in_slots(base, adapter), {record.name for record in base.inputs}
    for shape in SHAPES:
        inputs = inputs_of(name, *shape)
        found = run({key: value.numpy() for key, value in inputs.items() if key in taken})["out"]
        close(found, hooked(name, module, adapter, inputs), inputs)


def close(found: np.ndarray, wanted: np.ndarray, inputs: Mapping[str, Tensor]) -> None:
    """Compare at real tokens of the decoder: values at padding are meaningless, and fused kernels differ there."""
    real = inputs["decoder_attention_mask"].numpy() == 1
    np.testing.assert_allclose(found[real], wanted[real], rtol=0, atol=TOLERANCE)


def hooked(name: str, module: nn.Module, adapter: Adapter | None, inputs: Mapping[str, Tensor]) -> np.ndarray:
    return with_hooks(module, listed(name), adapter, lambda: module(**inputs, use_cache=False, return_dict=False)[0])
