"""Sample documents that the tests of the format share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adapter_export.format.adapter_files import write_adapter
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import (
    AdapterRecord,
    GoldenRecord,
    HeadRecord,
    InputRecord,
    Manifest,
    MixRecord,
    OutputRecord,
    SiteRecord,
    SlotRecord,
    TextRecord,
)
from adapter_export.format.manifest_json import MANIFEST_VERSION, list_files
from adapter_export.graph.adapter import Adapter, Head, Placement
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds import BottleneckOptions, classification_head, houlsby
from adapter_export.graph.tasks import Task

WIDTHS = {"d": 8, "b": 2}
SITES = ("layers.10.ffn", "layers.2.ffn")
"""Not in alphabetical order, so that a reader that sorts them is found out."""


def random_weights(graph: AdapterGraph, widths: Mapping[str, int], owner: str, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        f"{owner}.{name}": (0.2 * generator.standard_normal(shape)).astype(np.float32)
        for name, shape in sorted(graph.parameter_shapes(widths).items())
    }


@pytest.fixture
def adapter() -> Adapter:
    """A small adapter with everything that the format can say."""
    kind = houlsby(BottleneckOptions(activation="leaky_relu", scaling=0.5, dropout=0.1, norm_before=True))
    head = Head(
        classification_head(), {"d": 8, "classes": 3}, Task("single_label", ("negative", "positive", "für beides"))
    )
    weights = random_weights(head.graph, head.widths, "head", seed=0)
    for seed, site in enumerate(SITES, start=1):
        weights |= random_weights(kind.graph, WIDTHS, site, seed)
    return Adapter(
        name="tiny-1.0",
        kind=kind.name,
        base="sha256:0123",
        graphs=kind.graphs,
        placements={site: Placement(name, WIDTHS) for site in SITES for name in kind.graphs},
        weights=weights,
        head=head,
        training={"epochs": 3, "rate": 1e-5, "note": "a 🙂", "seeds": [1, 2]},
    )


@pytest.fixture
def folder(adapter: Adapter, tmp_path: Path) -> Path:
    """The small adapter on disk."""
    write_adapter(adapter, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def bundle(adapter: Adapter, tmp_path: Path) -> Path:
    """The files of a bundle, with stand-ins for those whose contents the manifest does not describe."""
    root = tmp_path / "bundle"
    write_adapter(adapter, root / "adapters/tiny-1.0")
    names = ("adapters/tiny-1.0.onnx_adapter", "adapters/tiny-1.0.safetensors", "tokenizer.json")
    names += ("golden/base.safetensors", "golden/tiny-1.0.safetensors", "golden/texts.json", "model.onnx", "base.bin")
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"the bytes of {name}")
    return root


@pytest.fixture
def manifest(bundle: Path) -> Manifest:
    """The manifest of that bundle."""
    golden = GoldenRecord("golden/base.safetensors", ("one", "two"), {"hidden": 1e-5}, "torch 2.13.0 float32")
    record = AdapterRecord(
        name="tiny-1.0",
        kind="houlsby",
        parameters=123,
        onnx_adapter="adapters/tiny-1.0.onnx_adapter",
        safetensors="adapters/tiny-1.0.safetensors",
        source="adapters/tiny-1.0",
        base="sha256:0123",
        golden=replace(golden, path="golden/tiny-1.0.safetensors", absolute={"logits": 1e-5, "hidden": 2e-5}),
        task=Task("single_label", ("negative", "positive", "für beides")),
        output="logits",
        mix=MixRecord(("adapter.shared.mix.weights",), ("first", "second")),
    )
    return Manifest(
        version=MANIFEST_VERSION,
        producer="adapter-export 0.1.0",
        minimum_onnxruntime="1.21",
        opset=18,
        base="sha256:0123",
        base_precision="fp32",
        batch_invariant=True,
        padding_neutral=True,
        counts_padding=(),
        graphs={"slots": "model.onnx"},
        inputs=(
            InputRecord("input_ids", "int64", ("batch", "sequence"), "ids", 30522),
            InputRecord("attention_mask", "int64", ("batch", "sequence"), "mask"),
        ),
        lengths={"sequence": Lengths(4, 512, 4, (12,))},
        outputs=(
            OutputRecord("hidden", "float32", ("batch", "sequence", 8)),
            OutputRecord("logits", "float32", ("batch", "classes")),
        ),
        sites=(SiteRecord("layers.0.ffn", "ffn", 0, 8, "encoder.layer.0", "add_3"),),
        slots=(
            SlotRecord("adapter.layers.0.ffn.up.bias", "layers.0.ffn", "bottleneck", "up.bias", (8,), (8,)),
            SlotRecord("adapter.head.classifier.bias", "head", "head", "classifier.bias", ("classes",), (1,)),
            SlotRecord("adapter.shared.mix.weights", "shared", "mix", "mix.weights", ("rows", 2), (1, 2)),
        ),
        adapters=(record,),
        golden=golden,
        text=TextRecord("tokenizer.json", "0" * 64),
        golden_texts="golden/texts.json",
        files=list_files(bundle),
        heads=(HeadRecord("head", "logits", "logits"),),
        model_version=1234567,
    )
