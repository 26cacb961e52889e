"""Golden files: the bytes that format 1 means, committed. If this test fails, the format has changed.

Numbers that float32 holds exactly, made by integer arithmetic, so that no library has a say in them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from adapter_export.format.adapter_files import read_adapter, write_adapter
from adapter_export.graph.adapter import Adapter, Head, Placement
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds import KINDS, BottleneckOptions, classification_head, houlsby, parallel
from adapter_export.graph.tasks import Task

GOLDEN = Path(__file__).parent / "golden" / "adapter"
FILES = ("adapter_graph.json", "weights.safetensors")


def exact_numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Uniform multiples of 1/4096 between -0.346 and 0.346, whose standard deviation is 0.2."""
    index = np.arange(int(np.prod(shape)), dtype=np.int64)
    return (((index * 1597 + seed * 811) % 2837 - 1418) / 4096).astype(np.float32).reshape(shape)


def golden_adapter() -> Adapter:
    """An adapter with everything that the format can say."""
    after = houlsby(BottleneckOptions(activation="leaky_relu", scaling=0.5, dropout=0.1, norm_before=True))
    beside = parallel(BottleneckOptions(activation="gelu_tanh", no_bias=True))
    products = replace(KINDS["compacter++"]().graph, shared=("rule", "down.left"))
    fused = AdapterGraph(
        ("h", "x", "y"),
        {"query": ("d", 1), "weights": ("rows", 2), "scaling": ("d",)},
        (
            Node("dot", ("h", "x"), "near"),
            Node("linear", ("y",), "far", {"weight": "query"}),
            Node("softmax_mix", ("near", "far", "h", "x"), "fused", {}, {"temperature": 2.0}),
            Node("mix", ("fused", "y"), "mixed", {"weights": "weights"}),
            Node("scale_features", ("mixed",), "result", {"weight": "scaling"}),
        ),
        "result",
        replaces="y",
    )
    (after_name,), (beside_name,) = after.graphs, beside.graphs
    widths, factors = {"d": 6, "b": 2}, {"d": 6, "b": 4, "n": 2, "p": 3, "k": 1, "q": 2}
    placements = {
        "layers.10.attention": Placement(after_name, widths),
        "layers.10.ffn": Placement(beside_name, {**widths, "d_in": 6, "b": 3}),
        "layers.2.ffn": Placement(after_name, widths),
        "layers.0.ffn": Placement("products", factors),
        "layers.1.ffn": Placement("products", factors),
        "layers.1.attention": Placement("fused", {"d": 6, "rows": 1}),
    }
    graphs = {**after.graphs, **beside.graphs, "products": products, "fused": fused}
    head = Head(classification_head("first"), {"d": 6, "classes": 3}, Task("single_label", ("no", "yes", "peut-être")))
    parts = [(site, graphs[placement.graph], placement.widths) for site, placement in placements.items()]
    shapes = {
        f"{f'shared.{placements[owner].graph}' if name in graph.shared else owner}.{name}": shape
        for owner, graph, numbers in [*parts, ("head", head.graph, head.widths)]
        for name, shape in graph.parameter_shapes(numbers).items()
    }
    weights = {name: exact_numbers(shapes[name], seed) for seed, name in enumerate(sorted(shapes))}
    training = {"epochs": 3, "learning_rate": 1e-05, "note": "für 🙂", "seed": 7}
    return Adapter("golden", "custom", "sha256:00ff", graphs, placements, weights, head, training)


def test_writing_gives_the_golden_bytes(tmp_path: Path) -> None:
    write_adapter(golden_adapter(), tmp_path / "a")
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_reading_gives_the_values() -> None:
    found, expected = read_adapter(GOLDEN), golden_adapter()
    assert list(found.placements) == list(expected.placements)
    assert list(found.placements)[:3] == ["layers.10.attention", "layers.10.ffn", "layers.2.ffn"]
    assert found.placements == expected.placements
    assert found.graphs == expected.graphs
    assert found.head == expected.head
    assert found.training == expected.training
    assert (found.name, found.kind, found.base) == ("golden", "custom", "sha256:00ff")
    assert sorted(found.weights) == sorted(expected.weights)
    for name, tensor in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], tensor)
    assert found.weights["head.classifier.bias"].tolist() == [-1418 / 4096, 179 / 4096, -1061 / 4096]
    assert 0.19 < np.concatenate([tensor.ravel() for tensor in found.weights.values()]).std() < 0.21
