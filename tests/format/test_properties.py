"""For any adapter: round trips; and after any mutation of its bytes, it is read unchanged or rejected."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tiers import examples

from adapter_export.errors import AdapterExportError
from adapter_export.format.adapter_files import (
    graph_from_json,
    graph_to_json,
    parse_adapter,
    read_adapter,
    write_adapter,
)
from adapter_export.graph.adapter import Adapter, Head, Placement
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds import classification_head
from adapter_export.graph.ops import ACTIVATIONS
from adapter_export.graph.tasks import Task

GOLDEN = Path(__file__).parent / "golden" / "adapter"
FILES = ("adapter_graph.json", "weights.safetensors")
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
FACTORS = st.floats(-1e30, 1e30, allow_nan=False)


_OTHERS = (
    "scale",
    "scale_features",
    "dropout",
    "drop_path",
    "layer_norm",
    "linear",
    "multiply",
    "gate",
    "mix",
    "softmax_mix",
)


class Grower:
    """Build a graph by adding ops to existing values, as long as Hypothesis draws more."""

    def __init__(self, draw: Callable[..., object]) -> None:
        self.draw = draw
        self.nodes: list[Node] = []
        self.parameters: dict[str, tuple[str | int, ...]] = {}

    def add(
        self, op: str, *inputs: str, roles: dict[str, tuple[str | int, ...]] | None = None, **numbers: float
    ) -> str:
        output = f"v{len(self.nodes)}"
        named = {role: f"{output}.{role}" for role in roles or {}}
        self.parameters.update({named[role]: shape for role, shape in (roles or {}).items()})
        self.nodes.append(Node(op, inputs, output, named, numbers))
        return output

    def step(self, value: str) -> str:
        op = self.draw(st.sampled_from([*ACTIVATIONS, *_OTHERS]))
        if op == "scale":
            return self.add("scale", value, factor=self.draw(FACTORS))
        if op in {"dropout", "drop_path"}:
            return self.add(op, value, rate=self.draw(st.floats(0, 0.99)))
        if op in {"mix", "softmax_mix"}:
            return self.mixed(op, value)
        if op == "scale_features":
            return self.add(op, value, roles={"weight": ("d",)})
        if op == "layer_norm":
            epsilon = self.draw(st.floats(1e-12, 1))
            return self.add("layer_norm", value, roles={"weight": ("d",), "bias": ("d",)}, epsilon=epsilon)
        if op == "linear":
            middle = self.add("linear", value, roles={"weight": ("d", "b"), "bias": ("b",)})
            return self.add("linear", middle, roles={"weight": ("b", "d")})
        if op == "multiply":
            return self.add("multiply", value, self.draw(st.sampled_from(["h", value])))
        if op == "gate":
            return self.add("gate", value, self.score(value))
        return self.add(op, value, **({"slope": self.draw(FACTORS)} if op == "leaky_relu" else {}))

    def score(self, value: str) -> str:
        return self.add("linear", value, roles={"weight": ("d", 1)})

    def mixed(self, op: str, value: str) -> str:
        values = [value, *(["h"] * self.draw(st.integers(0, 2)))]
        if op == "mix":
            return self.add("mix", *values, roles={"weights": (1, len(values))})
        temperature = self.draw(st.floats(1e-6, 1e6))
        return self.add("softmax_mix", *(self.score(one) for one in values), *values, temperature=temperature)


@st.composite
def graphs(draw: Callable[..., object]) -> AdapterGraph:
    grower, value = Grower(draw), "h"
    for _ in range(draw(st.integers(1, 5))):
        value = grower.step(value)
    replaces = draw(st.sampled_from(["h", "y"]))
    other = draw(st.sampled_from(["h", "x"] if replaces == "h" else ["h", "x", "y"]))
    result = grower.add("add", other, value)
    shared = draw(st.lists(st.sampled_from(sorted(grower.parameters)), unique=True)) if grower.parameters else []
    inputs = ("h",) if other == "h" else ("h", other)
    return AdapterGraph(inputs, grower.parameters, tuple(grower.nodes), result, replaces, tuple(shared))


WIDTHS = st.fixed_dictionaries({"d": st.integers(1, 4), "b": st.integers(1, 3)})


@st.composite
def adapters(draw: Callable[..., object]) -> Adapter:
    by_name = draw(st.dictionaries(NAMES, graphs(), min_size=1, max_size=2))
    free = NAMES.filter(lambda name: name not in {"head", "shared"})
    sites = draw(st.lists(free, min_size=len(by_name), max_size=4, unique=True))
    used = [*by_name, *(draw(st.sampled_from(sorted(by_name))) for _ in sites[len(by_name) :])]
    widths = {name: draw(WIDTHS) for name in by_name}
    placements = {site: Placement(graph, widths[graph]) for site, graph in zip(sites, used, strict=True)}
    labels = draw(
        st.none()
        | st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=3, unique=True)
    )
    head = (
        None
        if labels is None
        else Head(classification_head(), {"d": 3, "classes": len(labels)}, Task("single_label", tuple(labels)))
    )
    parts = [
        (site, placement.graph, by_name[placement.graph], placement.widths) for site, placement in placements.items()
    ]
    parts += [] if head is None else [("head", "", head.graph, head.widths)]
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = {
        f"{f'shared.{key}' if name in graph.shared else owner}.{name}": (0.2 * generator.standard_normal(shape)).astype(
            np.float32
        )
        for owner, key, graph, widths in parts
        for name, shape in graph.parameter_shapes(widths).items()
    }
    return Adapter("any", "custom", "base", by_name, placements, weights, head, {"epochs": draw(st.integers())})


def equal(found: Adapter, expected: Adapter) -> bool:
    same = found.weights.keys() == expected.weights.keys() and list(found.placements) == list(expected.placements)
    return (
        same
        and replace(found, weights=expected.weights) == expected
        and all(found.weights[name].tobytes() == tensor.tobytes() for name, tensor in expected.weights.items())
    )


@given(graphs())
def test_graphs_round_trip(graph: AdapterGraph) -> None:
    assert graph_from_json(graph_to_json(graph)) == graph


@examples(25)
@given(adapters())
def test_adapters_round_trip(adapter: Adapter) -> None:
    with tempfile.TemporaryDirectory() as place:
        write_adapter(adapter, Path(place) / "a")
        found = read_adapter(Path(place) / "a")
        write_adapter(found, Path(place) / "b")
        assert equal(found, adapter)
        for name in FILES:
            assert (Path(place) / "a" / name).read_bytes() == (Path(place) / "b" / name).read_bytes()


def read_or_error(folder: Path) -> Adapter | AdapterExportError:
    try:
        return read_adapter(folder)
    except AdapterExportError as error:
        return error


def flip(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


@st.composite
def corruptions(draw: Callable[..., object]) -> Callable[[bytes], bytes]:
    """One of: a flipped bit, another byte, a cut, an insertion, a repetition, a hole."""
    share, other, length = draw(st.floats(0, 1)), draw(st.integers(0, 255)), draw(st.integers(1, 40))
    kind = draw(st.sampled_from(["flip", "byte", "cut", "insert", "repeat", "hole", "zeros"]))

    def corrupt(data: bytes) -> bytes:
        at = min(int(share * len(data)), len(data) - 1)
        return {
            "flip": flip(data, at, other % 8),
            "byte": data[:at] + bytes([other]) + data[at + 1 :],
            "cut": data[:at],
            "insert": data[:at] + bytes([other]) + data[at:],
            "repeat": data[: at + length] + data[at:],
            "hole": data[:at] + data[at + length :],
            "zeros": data[:at] + bytes(min(length, len(data) - at)) + data[at + length :],
        }[kind]

    return corrupt


@examples(200)
@given(st.lists(st.tuples(st.sampled_from(FILES), corruptions()), min_size=1, max_size=3))
def test_a_damaged_adapter_is_refused_or_unharmed(damages: list[tuple[str, Callable[[bytes], bytes]]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        damaged = Path(place) / "damaged"
        shutil.copytree(GOLDEN, damaged)
        for name, corrupt in damages:
            (damaged / name).write_bytes(corrupt((damaged / name).read_bytes() or b"\x00"))
        found = read_or_error(damaged)
        if isinstance(found, AdapterExportError):
            assert str(damaged) in str(found)
            assert found.exit_code == 3
        else:
            assert equal(found, read_adapter(GOLDEN))


def test_every_flipped_bit_of_the_json_is_seen() -> None:
    """Not one of them gives another adapter, nor an error that is not one of ours."""
    expected = read_adapter(GOLDEN)
    data, tensors = ((GOLDEN / name).read_bytes() for name in FILES)
    for at in range(len(data)):
        with suppress(AdapterExportError):
            assert equal(parse_adapter(flip(data, at, at % 8), tensors, FILES, GOLDEN), expected)
