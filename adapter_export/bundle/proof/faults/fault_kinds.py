"""Kinds of faults, and how each is planted in a copy of a bundle; `selftest` sees whether a check finds them.

The bundle itself stays as it is. Hashes are written anew, so to say: what they alone would show is not what is tried.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import onnx_ir as ir

from adapter_export.bundle.golden import write_golden
from adapter_export.bundle.opened import Graph, OpenedBundle
from adapter_export.bundle.report import BASE
from adapter_export.bundle.separation import faults_of
from adapter_export.bundle.variants import VARIANTS
from adapter_export.dtypes import AdapterPrecision, Weights, narrowed, widened
from adapter_export.format.adapter_files import write_adapter
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import AdapterRecord, GoldenRecord, Manifest, SlotRecord
from adapter_export.format.manifest_json import MANIFEST_FILE, write_manifest
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.graph.adapter import HEAD
from adapter_export.onnx_backend.rewrite.insert import result_of, site_values
from adapter_export.onnx_backend.rewrite.surgery import NODE_SITE_KEY
from adapter_export.onnx_backend.slots import slot_tensors
from adapter_export.runtime.adapter_file import write_adapter_file
from adapter_export.runtime.bundle import Bundle

Area = Literal[
    "base weights",
    "base nodes",
    "shapes",
    "sites",
    "adapters",
    "bank",
    "inputs graph",
    "manifest",
    "texts",
    "batches",
    "golden data",
    "recorded runs",
]

Drawn = TypeVar("Drawn")

FILES = ("safetensors", "onnx_adapter")
"""Of an adapter, those with its tensors."""

Place = str
"""The name of a tensor, node, slot, site, file or adapter that is wrong."""


class Copy:
    """A copy of a bundle in another folder that faults are planted in, one after the other; `rng` chooses where."""

    def __init__(self, bundle: OpenedBundle, folder: Path) -> None:
        self._bundle, self.folder = bundle, folder
        self.manifest, self.changed, self.rng = bundle.manifest, set[str](), np.random.default_rng()
        shutil.copytree(bundle.home, folder, dirs_exist_ok=True)

    def renew(self, seed: int) -> None:
        """Take back what was changed, and draw anew from a seed."""
        for path in self.changed:
            whole, here = self._bundle.home / path, self.folder / path
            if whole.is_dir():
                shutil.rmtree(here)
                shutil.copytree(whole, here)
            else:
                shutil.copyfile(whole, here)
        self.manifest, self.changed, self.rng = self._bundle.manifest, set[str](), np.random.default_rng(seed)

    def change(self, path: str) -> Path:
        """Return where a file lies that will be written anew."""
        self.changed.add(path)
        return self.folder / path

    def opened(self) -> OpenedBundle:
        """Return the copy as a check takes it; hashes are not compared, as if the author of the fault wrote them."""
        return OpenedBundle(Bundle(self.folder, self.manifest, verified=False))

    def graph(self, variant: str = "slots") -> ir.Model | None:
        """Return a graph; none if the bundle has none of that variant."""
        path = self.manifest.graphs.get(variant)
        return None if path is None else ir.load(self.folder / path)

    def keep(self, model: ir.Model, variant: str = "slots") -> None:
        """Write a graph that was changed."""
        self.change(self.manifest.graphs[variant]).write_bytes(ir.to_proto(model).SerializeToString())

    def claim(self, manifest: Manifest) -> None:
        """Write another manifest."""
        self.manifest = manifest
        self.change(MANIFEST_FILE).unlink()
        write_manifest(manifest, self.folder)

    def fill(
        self, name: str, tensors: Weights, files: Sequence[str] = FILES, precision: AdapterPrecision = "float32"
    ) -> None:
        """Write the tensors of an adapter to its two files, or to one of them, rounded to a precision."""
        stored = narrowed(tensors, precision)
        tensors = widened(stored)
        record = next(one for one in self.manifest.adapters if one.name == name)
        for kind in files:
            path = self.change(record.safetensors if kind == "safetensors" else record.onnx_adapter)
            path.unlink()
            if kind == "safetensors":
                write_tensors(path, stored)
            else:
                write_adapter_file(path, tensors, self.manifest.model_version, precision)

    def choose(self, candidates: Sequence[Drawn]) -> Drawn | None:
        """Draw one; none if there is none."""
        return candidates[int(self.rng.integers(len(candidates)))] if candidates else None


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    `plant` changes a copy and returns what is wrong by its names, any of which locates it; none where the bundle has
    nothing that can be wrong in this way.
    """

    name: str
    area: Area
    plant: Plant


Plant = Callable[[Copy], Sequence[Place] | None]


def _kinds(area: Area, plants: Mapping[str, Plant]) -> tuple[Fault, ...]:
    return tuple(Fault(name, area, plant) for name, plant in plants.items())


def _in_graph(change: Callable[[Copy, ir.Model], Sequence[Place] | None], variant: str = "slots") -> Plant:
    """Change a graph, and keep it if anything is wrong with it then."""

    def plant(copy: Copy) -> Sequence[Place] | None:
        model = copy.graph(variant)
        places = None if model is None else change(copy, model)
        if model is not None and places is not None:
            copy.keep(model, variant)
        return places

    return plant


# Constants of the base.

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _constants(model: ir.Model, *, rank: int | None = None, square: bool = False) -> list[ir.Value]:
    """Weights of the base in floats, no slots, of more than one number."""
    inputs = set(model.graph.inputs)
    found = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if value in inputs or tensor is None or not value.uses():
            continue
        if tensor.dtype != ir.DataType.FLOAT or tensor.size < 4:
            continue
        shape = tuple(tensor.shape.numpy())
        if (rank is None or len(shape) == rank) and (not square or (len(shape) == 2 and shape[0] == shape[1])):
            found.append(value)
    return found


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None  # as chosen
    return np.array(value.const_value.numpy())


def _set(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.Tensor(np.ascontiguousarray(array), name=value.name)
    if not value.is_graph_input():  # what can be fed keeps its axes: else it would be another interface
        value.shape = ir.Shape(array.shape)


def _tables(model: ir.Model) -> list[ir.Value]:
    """What words are looked up in, the longest first."""
    found = [value for value in _constants(model, rank=2) if any(node.op_type == "Gather" for node, _ in value.uses())]
    return sorted(found, key=lambda value: -len(_array(value)))


def _weight(change: Change, *, rank: int | None = None, square: bool = False, variant: str = "slots") -> Plant:
    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        tables = _tables(model)
        able = [one for one in _constants(model, rank=rank, square=square) if one not in tables]
        for at in copy.rng.permutation(len(able)):
            before = _array(able[int(at)])
            after = change(before.copy(), copy.rng).astype(np.float32)
            if after.tobytes() != before.tobytes():  # not the zeros of a bias, which stay what they are
                _set(able[int(at)], after)
                return [able[int(at)].name or ""]
        return None

    return _in_graph(changed, variant)


def _word(change: Callable[[np.ndarray, int, int], None], nth: int = 0) -> Plant:
    """Change two rows of a table of words."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        tables = _tables(model)
        if len(tables) <= nth or len(_array(tables[nth])) < 2:
            return None
        array = _array(tables[nth])
        change(array, *map(int, copy.rng.choice(len(array), 2, replace=False)))
        _set(tables[nth], array)
        return [tables[nth].name or ""]

    return _in_graph(changed)


def _at(array: np.ndarray, rng: np.random.Generator, change: Callable[[np.float32], np.float32]) -> np.ndarray:
    """Change the number that is furthest from 0, of some that are drawn: 0 would stay what it is."""
    flat = array.reshape(-1)
    drawn = rng.integers(flat.size, size=64)
    place = drawn[np.abs(flat[drawn]).argmax()]
    flat[place] = change(flat[place])
    return array


def _ulp(number: np.float32) -> np.float32:
    return np.float32(np.nextafter(number, np.float32(np.inf)))


def _exchanged(array: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
    one, other = rng.choice(array.shape[axis], 2, replace=False)
    order = np.arange(array.shape[axis])
    order[[one, other]] = order[[other, one]]
    return np.take(array, order, axis)


def _row_of_zeros(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    array[int(rng.integers(len(array)))] = 0
    return array


def _bfloat16(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _eight_bits(array: np.ndarray) -> np.ndarray:
    step = np.abs(array).max() / 127
    return np.asarray(np.round(array / step) * step)


def _two_constants(copy: Copy, model: ir.Model) -> list[Place] | None:
    groups: dict[tuple[int, ...], list[ir.Value]] = {}
    for value in _constants(model):
        groups.setdefault(_array(value).shape, []).append(value)
    pair = copy.choose(
        [
            (one, other)
            for group in groups.values()
            for one, other in combinations(group, 2)
            if _array(one).tobytes() != _array(other).tobytes()
        ]
    )
    if pair is None:
        return None
    one, other = pair
    first, second = _array(one), _array(other)
    _set(one, second)
    _set(other, first)
    return [one.name or "", other.name or ""]


def _of_norm(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Plant:
    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        norms = [
            (node, own)
            for node in model.graph
            if node.op_type == "LayerNormalization"
            and len(own := [one for one in node.inputs[1:3] if one is not None and one.const_value is not None]) == 2
        ]
        for at in copy.rng.permutation(len(norms)):
            node, own = norms[int(at)]
            before = _array(own[0]), _array(own[1])
            after = [array.astype(np.float32) for array in change(*before)]
            if any(one.tobytes() != other.tobytes() for one, other in zip(before, after, strict=True)):
                for value, array in zip(own, after, strict=True):
                    _set(value, array)
                return [*(value.name or "" for value in own), node.name or ""]
        return None

    return _in_graph(changed)


_WEIGHTS = _kinds(
    "base weights",
    {
        "one weight off by one ulp": _weight(lambda a, rng: _at(a, rng, _ulp)),
        "one weight off by a thousandth": _weight(lambda a, rng: _at(a, rng, lambda n: n * np.float32(1.001))),
        "one weight of the other sign": _weight(lambda a, rng: _at(a, rng, lambda n: -n), rank=2),
        "one weight is NaN": _weight(lambda a, rng: _at(a, rng, lambda _: np.float32(np.nan))),
        "a tensor scaled by 1.001": _weight(lambda a, _: a * np.float32(1.001), rank=2),
        "a tensor doubled": _weight(lambda a, _: a * 2, rank=2),
        "a tensor of the other sign": _weight(lambda a, _: -a, rank=2),
        "a tensor of zeros": _weight(lambda a, _: a * 0, rank=2),
        "a matrix transposed": _weight(lambda a, _: a.T, square=True),
        "a matrix upside down": _weight(lambda a, _: a[::-1], rank=2),
        "two rows of a matrix exchanged": _weight(lambda a, rng: _exchanged(a, 0, rng), rank=2),
        "two columns of a matrix exchanged": _weight(lambda a, rng: _exchanged(a, 1, rng), rank=2),
        "a row of a matrix is zero": _weight(_row_of_zeros, rank=2),
        "a matrix rounded to float16": _weight(lambda a, _: a.astype(np.float16), rank=2),
        "a matrix rounded to bfloat16": _weight(lambda a, _: _bfloat16(a), rank=2),
        "a matrix rounded to 8 bits": _weight(lambda a, _: _eight_bits(a), rank=2),
        "a matrix with noise of 1e-4": _weight(lambda a, rng: a + 1e-4 * rng.standard_normal(a.shape), rank=2),
        "a vector shifted by a place": _weight(lambda a, _: np.roll(a, 1), rank=1),
        "a vector of zeros": _weight(lambda a, _: a * 0, rank=1),
        "a vector off by a thousandth": _weight(lambda a, _: a + np.float32(1e-3), rank=1),
        "one weight is infinite": _weight(lambda a, rng: _at(a, rng, lambda _: np.float32(np.inf))),
        "the rows of a matrix shifted by one": _weight(lambda a, _: np.roll(a, 1, 0), rank=2),
        "two tensors exchanged": _in_graph(_two_constants),
        "weight and bias of a norm exchanged": _of_norm(lambda weight, bias: (bias, weight)),
        "the weight of a norm scaled by 1.01": _of_norm(lambda weight, bias: (weight * 1.01, bias)),
        "the bias of a norm left out": _of_norm(lambda weight, bias: (weight, bias * 0)),
        "a word's row doubled": _word(lambda a, one, _: a.__setitem__(one, a[one] * 2)),
        "a word's row of zeros": _word(lambda a, one, _: a.__setitem__(one, 0)),
        "the rows of two words exchanged": _word(lambda a, one, two: a.__setitem__([one, two], a[[two, one]])),
        "one number of a word off by an ulp": _word(lambda a, one, _: a.__setitem__((one, 0), _ulp(a[one, 0]))),
        "every word's row is the next one's": _word(lambda a, *_: a.__setitem__(slice(None), np.roll(a, 1, 0))),
        "the rows of two positions exchanged": _word(lambda a, one, two: a.__setitem__([one, two], a[[two, one]]), 1),
        "the table of positions shifted": _word(lambda a, *_: a.__setitem__(slice(None), np.roll(a, 1, 0)), 1),
        "a row of the third table doubled": _word(lambda a, one, _: a.__setitem__(one, a[one] * 2), 2),
    },
)


# Nodes of the base.


def _base_nodes(model: ir.Model, *types: str) -> list[ir.Node]:
    """Nodes that are no adapter's, in the order of evaluation."""
    return [
        node
        for node in model.graph
        if node.op_type in types and not any("adapter" in (key or "") for key in (node.name, *node.metadata_props))
    ]


def _before(node: ir.Node) -> set[ir.Node]:
    """The nodes that another one follows from."""
    found, todo = set[ir.Node](), [node]
    while todo:
        for value in todo.pop().inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in found:
                found.add(producer)
                todo.append(producer)
    return found


def _instead(old: ir.Value, new: ir.Node, model: ir.Model) -> None:
    """Let a new node, which may read a value, stand in the place of that value for all others."""
    result = new.outputs[0]
    result.type, result.shape = old.type, old.shape
    producer = old.producer()
    for node, index in list(old.uses()):
        if node is not new and node not in _before(new):
            node.replace_input_with(index, result)
    graph = model.graph
    for at, value in enumerate(graph.outputs):
        if value is old:
            name, old.name = old.name, f"{old.name}.before"
            result.name = name
            graph.outputs[at] = result
    if producer is not None:
        graph.insert_after(producer, new)
    else:
        own = [other for other in graph if other in _before(new)]
        graph.insert_after(own[-1], new) if own else graph.insert_before(graph[0], new)


def _number(model: ir.Model, array: np.ndarray, name: str) -> ir.Value:
    value = ir.Value(name=f"planted.{name}", const_value=ir.Tensor(array, name=f"planted.{name}"))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    model.graph.register_initializer(value)
    return value


def _edit(change: Callable[[ir.Model, ir.Node], bool], *types: str, variant: str = "slots") -> Plant:
    """Change one node of some types; `change` says whether it can."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        nodes = _base_nodes(model, *types)
        for at in copy.rng.permutation(len(nodes)):
            node = nodes[int(at)]
            names = [node.name or "", *(value.name or "" for value in node.outputs)]
            if change(model, node):
                return names
        return None

    return _in_graph(changed, variant)


_OTHER = {"Gelu": "Tanh", "Erf": "Tanh", "Relu": "Elu", "Tanh": "Softsign", "Sigmoid": "HardSigmoid"}


def _other_activation(_: ir.Model, node: ir.Node) -> bool:
    node.op_type = _OTHER[node.op_type]
    node.attributes.clear()
    return True


def _approximate(_: ir.Model, node: ir.Node) -> bool:
    other = {"tanh": "none"}.get(node.attributes.get_string("approximate", "none") or "none", "tanh")
    node.attributes["approximate"] = ir.AttrString("approximate", other)
    return True


def _epsilon(_: ir.Model, node: ir.Node) -> bool:
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 10 * (node.attributes.get_float("epsilon", 1e-5) or 1e-5))
    return True


def _axis(_: ir.Model, node: ir.Node) -> bool:
    node.attributes["axis"] = ir.AttrInt64("axis", -2 if node.attributes.get_int("axis", -1) in (-1, 3) else -1)
    return True


def _perm(_: ir.Model, node: ir.Node) -> bool:
    perm = list(node.attributes.get_ints("perm") or ())
    if len(perm) < 4:
        return False
    perm[-1], perm[-2] = perm[-2], perm[-1]
    node.attributes["perm"] = ir.AttrInt64s("perm", perm)
    return True


def _operands(node: ir.Node) -> list[ir.Value]:
    """Inputs that are computed."""
    return [value for value in node.inputs if value is not None and value.producer() is not None]


def _is_residual(node: ir.Node) -> bool:
    """Whether a node adds two computed values of one shape."""
    own = _operands(node)
    return len(own) == 2 and own[0].shape is not None and own[0].shape == own[1].shape and len(own[0].shape) >= 2


def _identity_of(at: int) -> Callable[[ir.Model, ir.Node], bool]:
    """Leave out a residual."""

    def change(_: ir.Model, node: ir.Node) -> bool:
        return _is_residual(node) and _became_identity(node, _operands(node)[at])

    return change


def _became_identity(node: ir.Node, of: ir.Value) -> bool:
    node.op_type = "Identity"
    node.replace_input_with(0, of)
    node.resize_inputs(1)
    return True


def _without_bias(_: ir.Model, node: ir.Node) -> bool:
    own = _operands(node)
    if len(own) != 1 or len(node.inputs) != 2 or not any(v is not None and v.is_initializer() for v in node.inputs):
        return False
    return _became_identity(node, own[0])


def _skipped(_: ir.Model, node: ir.Node) -> bool:
    node.op_type = "Identity"
    node.attributes.clear()
    node.resize_inputs(1)
    return True


def _twice(model: ir.Model, node: ir.Node) -> bool:
    """Add a residual twice."""
    if not _is_residual(node):
        return False
    _instead(node.outputs[0], ir.Node("", "Add", [node.outputs[0], _operands(node)[0]]), model)
    return True


def _to_sub(_: ir.Model, node: ir.Node) -> bool:
    if len(_operands(node)) != 2:
        return False
    node.op_type = "Sub"
    return True


def _scaled(factor: float) -> Callable[[ir.Model, ir.Node], bool]:
    def change(model: ir.Model, node: ir.Node) -> bool:
        _instead(node.outputs[0], _times(factor)(model, node.outputs[0]), model)
        return True

    return change


def _rounded(model: ir.Model, node: ir.Node) -> bool:
    value = node.outputs[0]
    small = ir.Node("", "Cast", [value], [ir.AttrInt64("to", ir.DataType.FLOAT16)])
    wide = ir.Node("", "Cast", [small.outputs[0]], [ir.AttrInt64("to", ir.DataType.FLOAT)])
    _instead(value, wide, model)
    small.replace_input_with(0, value)
    model.graph.insert_before(wide, small)
    return True


def _noisy(model: ir.Model, node: ir.Node) -> bool:
    value = node.outputs[0]
    noise = ir.Node("", "RandomNormalLike", [value], [ir.AttrFloat32("scale", 1e-3)])
    total = ir.Node("", "Add", [value, noise.outputs[0]])
    _instead(value, total, model)
    noise.replace_input_with(0, value)
    model.graph.insert_before(total, noise)
    return True


def _number_of_attention(model: ir.Model, node: ir.Node) -> bool:
    scalar = [v for v in node.inputs if v is not None and v.const_value is not None and v.const_value.size == 1]
    if len(scalar) != 1 or scalar[0].const_value is None or scalar[0].const_value.dtype != ir.DataType.FLOAT:
        return False
    own = _number(model, np.asarray(_array(scalar[0]) * np.float32(1.01)), "scale")
    node.replace_input_with(list(node.inputs).index(scalar[0]), own)
    return True


def _mask(change: Callable[[ir.Model, ir.Value], ir.Node], role: str = "mask") -> Plant:
    """Change what the base makes of its mask, or of its ids."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        names = [one.name for one in copy.manifest.inputs if one.role == role and one.dtype in ("int64", "int32")]
        value = next((value for value in model.graph.inputs if value.name in names and value.uses()), None)
        if value is None:
            return None
        readers = [node.name or "" for node, _ in value.uses()]
        _instead(value, change(model, value), model)
        return [value.name or "", *readers]

    return _in_graph(changed)


def _long_masked(model: ir.Model, value: ir.Value) -> ir.Node:
    """Mask all tokens behind the 65th."""
    shape = ir.Node("", "Shape", [value])
    size = ir.Node("", "Gather", [shape.outputs[0], _number(model, np.array(1, np.int64), "axis")])
    ends = [_number(model, np.array(number, np.int64), name) for number, name in ((0, "first"), (1, "step"))]
    places = ir.Node("", "Range", [ends[0], size.outputs[0], ends[1]])
    seen = ir.Node("", "Less", [places.outputs[0], _number(model, np.array(65, np.int64), "most")])
    kept = ir.Node("", "Cast", [seen.outputs[0]], [ir.AttrInt64("to", value.dtype or ir.DataType.INT64)])
    model.graph.insert_before(model.graph[0], [shape, size, places, seen, kept])
    return ir.Node("", "Mul", [value, kept.outputs[0]])


def _int(model: ir.Model, value: ir.Value, number: int, name: str) -> ir.Value:
    dtype = np.int64 if value.dtype == ir.DataType.INT64 else np.int32
    return _number(model, np.array(number, dtype), name)


_NODES = _kinds(
    "base nodes",
    {
        "another activation": _edit(_other_activation, *_OTHER),
        "another approximation of GELU": _edit(_approximate, "Gelu"),
        "an activation left out": _edit(_skipped, *_OTHER),
        "a norm with ten times its epsilon": _edit(_epsilon, "LayerNormalization", "RMSNormalization"),
        "a norm left out": _edit(_skipped, "LayerNormalization", "RMSNormalization"),
        "a softmax over another axis": _edit(_axis, "Softmax"),
        "a transposition of other axes": _edit(_perm, "Transpose"),
        "a residual left out": _edit(_identity_of(0), "Add"),
        "a sublayer left out": _edit(_identity_of(1), "Add"),
        "a residual subtracted": _edit(_to_sub, "Add"),
        "a residual added twice": _edit(_twice, "Add"),
        "a bias left out": _edit(_without_bias, "Add"),
        "a product scaled by 1.01": _edit(_scaled(1.01), "MatMul", "Gemm"),
        "a product scaled by 1.0001": _edit(_scaled(1.0001), "MatMul", "Gemm"),
        "a product of zeros": _edit(_scaled(0.0), "MatMul", "Gemm"),
        "a product rounded to float16": _edit(_rounded, "MatMul", "Gemm"),
        "a product with noise": _edit(_noisy, "MatMul", "Gemm"),
        "another scale of attention": _edit(_number_of_attention, "Mul", "Div"),
        "the mask ignored": _mask(lambda m, v: ir.Node("", "Max", [v, _int(m, v, 1, "one")])),
        "the mask inverted": _mask(lambda m, v: ir.Node("", "Sub", [_int(m, v, 1, "one"), v])),
        "each word read as that of half its number": _mask(
            lambda m, v: ir.Node("", "Div", [v, _int(m, v, 2, "two")]), "ids"
        ),
    },
)


# Faults of some shapes: a factor on an output of the base, 1 where the shape is another.


def _of_shape(condition: str) -> Plant:
    """`condition` is one of those of `_off_where`."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        record = next((one for one in copy.manifest.inputs if one.role in ("ids", "mask") and len(one.axes) == 2), None)
        outputs = {one.name for one in copy.manifest.base_outputs if one.dtype == "float32"}
        mask = next((one.name for one in copy.manifest.inputs if one.role == "mask" and len(one.axes) == 2), None)
        if record is None or not outputs or (condition == "left" and mask is None):
            return None
        axis = record.axes[0 if condition in _OF_ROWS else 1]
        if not isinstance(axis, str):  # of one length
            return None
        value = next(one for one in model.graph.outputs if one.name in outputs)
        source = next(one for one in model.graph.inputs if one.name == (mask if condition == "left" else record.name))
        producer = value.producer()
        _off_where(model, value, source, condition)
        smallest = {"even": 2, "long": 65, "rows": 4, "one": 1, "alone": 1}.get(condition)
        place = "padded_left" if smallest is None else f"{axis}{smallest}"
        return [place, *([] if producer is None else [producer.name or ""])]

    return _in_graph(changed)


_OF_ROWS = ("rows", "alone")
"""Conditions on the number of rows of a batch, not of tokens."""


def _off_where(model: ir.Model, old: ir.Value, source: ir.Value, condition: str) -> None:
    """Let a value be off by 1 % where a condition on a source holds."""

    def number(value: object, name: str, dtype: type = np.int64) -> ir.Value:
        return _number(model, np.array(value, dtype), name)

    if condition == "left":
        first = ir.Node("", "Gather", [source, number(0, "first")], [ir.AttrInt64("axis", 1)])
        least = ir.Node("", "ReduceMin", [first.outputs[0]], [ir.AttrInt64("keepdims", 0)])
        holds = ir.Node("", "Equal", [least.outputs[0], number(0, "none")])
        nodes = [first, least, holds]
    else:
        shape = ir.Node("", "Shape", [source])
        size = ir.Node("", "Gather", [shape.outputs[0], number(0 if condition in _OF_ROWS else 1, "axis")])
        nodes = [shape, size]
        if condition == "even":
            rest = ir.Node("", "Mod", [size.outputs[0], number(2, "two")])
            nodes += [rest, ir.Node("", "Equal", [rest.outputs[0], number(0, "none")])]
        elif condition in ("one", "alone"):
            nodes.append(ir.Node("", "Equal", [size.outputs[0], number(1, "one")]))
        else:
            nodes.append(ir.Node("", "Greater", [size.outputs[0], number(3 if condition == "rows" else 64, "most")]))
    nodes.append(ir.Node("", "Cast", [nodes[-1].outputs[0]], [ir.AttrInt64("to", ir.DataType.FLOAT)]))
    nodes.append(ir.Node("", "Mul", [nodes[-1].outputs[0], number(0.01, "part", np.float32)]))
    nodes.append(ir.Node("", "Add", [nodes[-1].outputs[0], number(1, "whole", np.float32)]))
    product = ir.Node("", "Mul", [old, nodes[-1].outputs[0]])
    _instead(old, product, model)
    model.graph.insert_before(product, nodes)


_SHAPES = _kinds(
    "shapes",
    {
        "even lengths off by 1 %": _of_shape("even"),
        "more than 64 tokens off by 1 %": _of_shape("long"),
        "single tokens off by 1 %": _of_shape("one"),
        "batches of four and more off by 1 %": _of_shape("rows"),
        "batches of one off by 1 %": _of_shape("alone"),
        "padding on the left off by 1 %": _of_shape("left"),
        "tokens behind the 65th masked": _mask(_long_masked),
    },
)


# Sites and slots in the graph.


def _skip_site(copy: Copy, model: ir.Model) -> list[Place] | None:
    shown = site_values(model)
    chosen = copy.choose(
        [(site, at) for site, values in shown.items() for at in ("h", "u", "y") if result_of(at) in values]
    )
    if chosen is None:
        return None
    site, at = chosen
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    old, kept = values[shown[site][result_of(at)]], values[shown[site][at]]
    for node, index in list(old.uses()):
        node.replace_input_with(index, kept)
    return None if old.is_graph_output() else [site]


def _alike_slots(copy: Copy) -> list[tuple[SlotRecord, SlotRecord]]:
    """Pairs of slots of one shape and purpose, at two sites."""
    return [
        (one, other)
        for one, other in combinations(copy.manifest.slots, 2)
        if one.axes == other.axes and one.neutral == other.neutral and one.site != other.site
    ]


def _exchange_slots(copy: Copy, model: ir.Model) -> list[Place] | None:
    pair = copy.choose(_alike_slots(copy))
    if pair is None:
        return None
    values = {value.name: value for value in model.graph.inputs}
    one, other = (values[slot.name] for slot in pair)
    first, second = list(one.uses()), list(other.uses())
    for node, index in first:
        node.replace_input_with(index, other)
    for node, index in second:
        node.replace_input_with(index, one)
    return [*(slot.name for slot in pair), *(slot.site for slot in pair)]


def _slot_value(change: Callable[[ir.Model, ir.Value], ir.Node | None]) -> Plant:
    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        slot = copy.choose(_busy_slots(copy))
        if slot is None:
            return None
        value = next(one for one in model.graph.inputs if one.name == slot)
        node = change(model, value)
        if node is not None:
            _instead(value, node, model)
        return [slot, next(one.site for one in copy.manifest.slots if one.name == slot)]

    return _in_graph(changed)


def _busy_slots(copy: Copy) -> list[str]:
    """Slots that an adapter fills with something that matters."""
    found: dict[str, None] = {}
    for record in copy.manifest.adapters:
        tensors = read_tensors(copy.folder / record.safetensors)
        for slot in copy.manifest.slots:
            tensor = tensors[slot.name]
            if tensor.size > 1 and (tensor != slot.neutral_value).any():
                found[slot.name] = None
    return list(found)


def _default(_: ir.Model, value: ir.Value) -> None:
    _set(value, _array(value) + np.float32(1e-3))


def _times(factor: float) -> Callable[[ir.Model, ir.Value], ir.Node]:
    return lambda model, value: ir.Node("", "Mul", [value, _number(model, np.array(factor, np.float32), "factor")])


_ACTIVATIONS = (*_OTHER, "LeakyRelu", "Elu", "Softplus", "HardSwish", "Mish")


def _in_site(change: Callable[[ir.Model, ir.Node], bool], *types: str) -> Plant:
    """Change one node of some types that is an adapter's own, not a head's."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        sites = {slot.site for slot in copy.manifest.slots} - {"head", "shared"}
        own = [
            node for node in model.graph if node.op_type in types and node.metadata_props.get(NODE_SITE_KEY) in sites
        ]
        for at in copy.rng.permutation(len(own)):
            node = own[int(at)]
            site = node.metadata_props[NODE_SITE_KEY]
            if change(model, node):
                return [site, node.outputs[0].name or ""]
        return None

    return _in_graph(changed)


def _at_even_lengths(model: ir.Model, node: ir.Node) -> bool:
    """Let a node be off where its result [batch, tokens, width] has an even number of tokens."""
    _off_where(model, node.outputs[0], node.outputs[0], "even")
    return True


_SITES = _kinds(
    "sites",
    {
        "a site left out": _in_graph(_skip_site),
        "the slots of two sites exchanged": _in_graph(_exchange_slots),
        "a slot ignored": _slot_value(_times(0)),
        "a slot scaled by 1.001": _slot_value(_times(1.001)),
        "a default that is not neutral": _slot_value(_default),
        "an activation left out in an adapter": _in_site(_skipped, *_ACTIVATIONS),
        "an activation off by 1 % at even lengths in an adapter": _in_site(_at_even_lengths, *_ACTIVATIONS),
        "a product scaled by 1.001 in an adapter": _in_site(_scaled(1.001), "MatMul", "Gemm"),
    },
)


# Files of adapters.


def _filled(change: Change, *, rank: int | None = None, head: bool = False, files: Sequence[str] = FILES) -> Plant:
    """Change one tensor of one adapter."""

    def plant(copy: Copy) -> list[Place] | None:
        able = []
        for record in copy.manifest.adapters:
            tensors = read_tensors(copy.folder / record.safetensors)
            for slot in copy.manifest.slots:
                tensor = tensors[slot.name]
                busy = tensor.size > 1 and (tensor != slot.neutral_value).any()
                if busy and (rank is None or tensor.ndim == rank) and (slot.site == "head") == head:
                    able.append((record.name, slot.name, slot.site))
        chosen = copy.choose(able)
        if chosen is None:
            return None
        name, key, site = chosen
        record = next(one for one in copy.manifest.adapters if one.name == name)
        tensors = read_tensors(copy.folder / record.safetensors)
        array = np.ascontiguousarray(change(tensors[key].copy(), copy.rng), np.float32)
        if array.tobytes() == tensors[key].tobytes():
            return None
        copy.fill(name, {**tensors, key: array}, files)
        return [key] if site == "head" else [key, site]

    return plant


def _crossed(*kinds: str) -> Plant:
    """Exchange the files of two adapters."""

    def plant(copy: Copy) -> list[Place] | None:
        records = copy.manifest.adapters
        if len(records) < 2:
            return None
        one, other = (records[int(at)] for at in copy.rng.choice(len(records), 2, replace=False))
        for kind in kinds:
            first, second = (copy.change(getattr(record, kind)) for record in (one, other))
            aside = first.with_name("aside")
            first.rename(aside)
            second.rename(first)
            aside.rename(second)
        return [one.name, other.name]

    return plant


def _site_idle(copy: Copy) -> list[Place] | None:
    record = copy.choose(copy.manifest.adapters)
    if record is None:
        return None
    tensors = read_tensors(copy.folder / record.safetensors)
    own = [s for s in copy.manifest.slots if s.site not in ("head", "shared") and tensors[s.name].shape != s.neutral]
    site = copy.choose(sorted({slot.site for slot in own}))
    if site is None:
        return None
    neutral = {
        slot.name: np.full(slot.neutral, slot.neutral_value, np.float32)
        for slot in copy.manifest.slots
        if slot.site == site
    }
    copy.fill(record.name, {**tensors, **neutral})
    return [site]


def _two_sites(copy: Copy) -> list[Place] | None:
    record = copy.choose(copy.manifest.adapters)
    if record is None:
        return None
    tensors = read_tensors(copy.folder / record.safetensors)
    alike = [(one, other, tensors[one.name], tensors[other.name]) for one, other in _alike_slots(copy)]
    chosen = copy.choose([each for each in alike if each[2].shape == each[3].shape and (each[2] != each[3]).any()])
    if chosen is None:
        return None
    one, other, first, second = chosen
    copy.fill(record.name, {**tensors, one.name: second, other.name: first})
    return [one.name, other.name, one.site, other.site]


def _slot_missing(copy: Copy) -> list[Place] | None:
    record, slot = copy.choose(copy.manifest.adapters), copy.choose(copy.manifest.slots)
    if record is None or slot is None:
        return None
    tensors = dict(read_tensors(copy.folder / record.safetensors))
    del tensors[slot.name]
    copy.fill(record.name, tensors)
    return [slot.name]


def _everything_of_an_adapter(copy: Copy) -> list[Place] | None:
    """Change an adapter wherever a bundle has it, source and golden vectors included: only the user's own is right."""
    record = copy.choose([one for one in copy.manifest.adapters if one.baked is None])
    if record is None:
        return None
    name, bundle = record.name, copy.opened()
    source, plan = bundle.source(name), bundle.plan
    key = copy.choose([key for key, tensor in source.weights.items() if tensor.size > 1 and tensor.any()])
    if key is None:
        return None
    other = replace(source, weights={**source.weights, key: source.weights[key] * np.float32(1.01)})
    write_adapter(other, copy.change(record.source), force=True)
    tensors, bank, model = slot_tensors(plan, other), copy.manifest.bank, copy.graph("bank")
    copy.fill(name, tensors)
    if bank is not None and model is not None and name in bank.rows:
        for each in bank.tensors:
            if each.slot is not None:
                held, own = _array(model.graph.initializers[each.name]), tensors[each.slot]
                row = bank.rows.index(name)
                wide = [(0, most - size) for most, size in zip(held.shape[1:], own.shape, strict=True)]
                held[row] = np.pad(own, wide)
                _set(model.graph.initializers[each.name], held)
        copy.keep(model, "bank")
    changed, golden = copy.opened(), bundle.golden(name)
    graph = Graph(changed, "slots", copy.manifest.graphs["slots"])
    found = [graph.run(case.arrays, (name,) * case.batch) for case in golden.cases]
    outputs = [{output: each[output] for output in golden.budgets} for each in found]
    copy.change(record.golden.path).unlink()
    write_golden(replace(golden, outputs=outputs), copy.folder, record.golden.path)
    return [name]


_ADAPTERS = _kinds(
    "adapters",
    {
        "one number of an adapter off by an ulp": _filled(lambda a, rng: _at(a, rng, _ulp)),
        "one number of an adapter off by a thousandth": _filled(
            lambda a, rng: _at(a, rng, lambda n: n * np.float32(1.001))
        ),
        "a tensor of an adapter scaled by 1.001": _filled(lambda a, _: a * np.float32(1.001)),
        "a tensor of an adapter of the other sign": _filled(lambda a, _: -a),
        "a tensor of an adapter of zeros": _filled(lambda a, _: a * 0),
        "two rows of an adapter exchanged": _filled(lambda a, rng: _exchanged(a, 0, rng), rank=2),
        "a vector of an adapter shifted": _filled(lambda a, _: np.roll(a, 1), rank=1),
        "an adapter rounded to float16": _filled(lambda a, _: a.astype(np.float16).astype(np.float32)),
        "an adapter that overflows": _filled(lambda a, rng: _at(a, rng, lambda _: np.float32(1e38)), rank=2),
        "two classes of a head exchanged": _filled(lambda a, rng: _exchanged(a, 0, rng), rank=2, head=True),
        "a head scaled by 1.001": _filled(lambda a, _: a * np.float32(1.001), rank=2, head=True),
        "the bias of a head off by a thousandth": _filled(lambda a, _: a + np.float32(1e-3), rank=1, head=True),
        "only the .safetensors file is wrong": _filled(lambda a, rng: _at(a, rng, _ulp), files=("safetensors",)),
        "only the .onnx_adapter file is wrong": _filled(lambda a, rng: _at(a, rng, _ulp), files=("onnx_adapter",)),
        "the files of two adapters exchanged": _crossed("safetensors", "onnx_adapter"),
        "the .onnx_adapter files of two adapters exchanged": _crossed("onnx_adapter"),
        "the sources of two adapters exchanged": _crossed("source"),
        "an adapter idle at one site": _site_idle,
        "the tensors of two sites exchanged in an adapter": _two_sites,
        "a tensor missing from an adapter": _slot_missing,
        "an adapter with its source and golden vectors": _everything_of_an_adapter,
    },
)


# The bank, and the graph whose slots must be fed.


def _held(change: Callable[[np.ndarray, Sequence[int]], None]) -> Plant:
    """Change the rows of a tensor of the bank that hold two adapters."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        bank, held = copy.manifest.bank, model.graph.initializers
        if bank is None or len(bank.rows) < 3:
            return None
        able = [one.name for one in bank.tensors if one.slot is not None and _array(held[one.name]).any()]
        for at in copy.rng.permutation(len(able)):
            array = _array(held[able[int(at)]])
            busy = [row for row in range(1, len(array)) if array[row].any()]
            if len(busy) < 2:
                continue
            before = array.tobytes()
            change(array, busy)
            if array.tobytes() != before:
                _set(held[able[int(at)]], array)
                return [able[int(at)], *(bank.rows[row] or "base" for row in busy[:2])]
        return None

    return _in_graph(changed, "bank")


def _one_row_for_all(copy: Copy, model: ir.Model) -> list[Place] | None:
    bank = copy.manifest.bank
    if bank is None:
        return None
    value = next(one for one in model.graph.inputs if one.name == bank.ids)
    _instead(value, ir.Node("", "Mul", [value, _number(model, np.array(0, np.int64), "zero")]), model)
    return [bank.ids]


def _unsaid_row_for_all(copy: Copy) -> Sequence[Place] | None:
    found = _in_graph(_one_row_for_all, "bank")(copy) if copy.manifest.batch_invariant else None
    if found is not None:
        copy.claim(replace(copy.manifest, batch_invariant=False))
    return found


_BANK = _kinds(
    "bank",
    {
        "two rows of the bank exchanged": _held(lambda a, rows: a.__setitem__(list(rows[:2]), a[list(rows[1::-1])])),
        "a row of the bank off by a thousandth": _held(lambda a, rows: a.__setitem__(rows[0], a[rows[0]] * 1.001)),
        "a row of the bank of zeros": _held(lambda a, rows: a.__setitem__(rows[0], 0)),
        "the row of the base is an adapter's": _held(lambda a, rows: a.__setitem__(0, a[rows[0]])),
        "one row for all": _in_graph(_one_row_for_all, "bank"),
        "one row for all, and rows said to influence each other": _unsaid_row_for_all,
        "a weight of the base off in the bank": _weight(lambda a, _: a * np.float32(1.001), rank=2, variant="bank"),
        "a product scaled by 1.01 in the bank": _edit(_scaled(1.01), "MatMul", "Gemm", variant="bank"),
    },
)
_INPUTS = _kinds(
    "inputs graph",
    {
        "a weight of the base off in `inputs`": _weight(lambda a, _: a * np.float32(1.001), rank=2, variant="inputs"),
        "a product scaled by 1.01 in `inputs`": _edit(_scaled(1.01), "MatMul", "Gemm", variant="inputs"),
        "another activation in `inputs`": _edit(_other_activation, *_OTHER, variant="inputs"),
    },
)


# What the manifest says.


def _said(change: Callable[[Copy, Manifest], tuple[Manifest, Sequence[Place]] | None]) -> Plant:
    def plant(copy: Copy) -> Sequence[Place] | None:
        found = change(copy, copy.manifest)
        if found is None or found[0] == copy.manifest:
            return None
        copy.claim(found[0])
        return found[1]

    return plant


def _with_adapter(manifest: Manifest, at: int, record: AdapterRecord) -> Manifest:
    return replace(manifest, adapters=(*manifest.adapters[:at], record, *manifest.adapters[at + 1 :]))


def _wide(golden: GoldenRecord) -> GoldenRecord:
    return replace(golden, absolute={name: 1000 * most for name, most in golden.absolute.items()})


def _wide_of_adapter(copy: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    record = copy.choose(manifest.adapters)
    if record is None:
        return None
    wide = replace(record, golden=_wide(record.golden))
    return _with_adapter(manifest, manifest.adapters.index(record), wide), ["allowance", record.name]


def _labels(copy: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    able = [(at, one, one.task) for at, one in enumerate(manifest.adapters) if one.task and len(one.task.labels) > 1]
    chosen = copy.choose(able)
    if chosen is None:
        return None
    at, record, task = chosen
    one, two, *rest = task.labels
    return _with_adapter(manifest, at, replace(record, task=replace(task, labels=(two, one, *rest)))), ["labels"]


def _paths(copy: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    able = [at for at, site in enumerate(manifest.sites) if site.path is not None]
    if len(able) < 2:
        return None
    one, two = (int(at) for at in copy.rng.choice(able, 2, replace=False))
    sites = list(manifest.sites)
    sites[one], sites[two] = replace(sites[one], path=sites[two].path), replace(sites[two], path=sites[one].path)
    return replace(manifest, sites=tuple(sites)), [sites[one].name, sites[two].name, "paths"]


def _longer(_: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    able = {axis: own for axis, own in manifest.lengths.items() if own.maximum is not None and not own.fixed}
    if not able:
        return None
    wider = {axis: replace(own, maximum=(own.maximum or 0) + own.multiple_of) for axis, own in able.items()}
    return replace(manifest, lengths={**manifest.lengths, **wider}), list(able)


def _shorter(_: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    able = {axis: own for axis, own in manifest.lengths.items() if own.maximum is not None and own.maximum > 2}
    less = {axis: Lengths.of(own.minimum, (own.maximum or 0) // 2) for axis, own in able.items()}
    known = {axis: own for axis, own in less.items() if own is not None}
    return (replace(manifest, lengths={**manifest.lengths, **known}), list(known)) if known else None


def _golden(change: Callable[[Weights, Copy], None]) -> Plant:
    def plant(copy: Copy) -> Sequence[Place] | None:
        path = copy.change(copy.manifest.golden.path)
        tensors = {name: value.copy() for name, value in read_tensors(path).items()}
        change(tensors, copy)
        path.unlink()
        write_tensors(path, tensors)
        return ["golden", "base", copy.manifest.golden.path]

    return plant


def _one_case(_: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    golden = manifest.golden
    return replace(manifest, golden=replace(golden, cases=golden.cases[:1])), ["golden", golden.path]


def _shift_outputs(tensors: Weights, _: Copy) -> None:
    for name in [name for name in tensors if ".output." in name]:
        tensors[name] = (tensors[name] + 0.01 * np.abs(tensors[name]).max()).astype(tensors[name].dtype)


def _other_ids(tensors: Weights, _: Copy) -> None:
    for name in [name for name in tensors if ".input." in name]:
        if tensors[name].dtype.kind == "i":
            tensors[name] = np.where(tensors[name] > 1, tensors[name] - 1, tensors[name])
        else:
            tensors[name] = tensors[name][::-1].copy() + np.float32(0.1)


_MANIFEST = _kinds(
    "manifest",
    {
        "golden allowances times 1000": _said(
            lambda _, m: (replace(m, golden=_wide(m.golden)), ["golden", "allowance", m.golden.path])
        ),
        "an adapter's allowances times 1000": _said(_wide_of_adapter),
        "golden cases cut to one": _said(_one_case),
        "golden outputs that are off": _golden(_shift_outputs),
        "golden inputs that are others": _golden(_other_ids),
        "two labels exchanged": _said(_labels),
        "the paths of two sites exchanged": _said(_paths),
        "a longer input is taken": _said(_longer),
        "only shorter inputs are taken": _said(_shorter),
        "padding said to change nothing": _said(
            lambda _, m: (
                None if m.padding_neutral else (replace(m, padding_neutral=True), ["padding", "padding_neutral"])
            )
        ),
        "padding said to matter": _said(
            lambda _, m: (
                (replace(m, padding_neutral=False, counts_padding=()), ["padding", "padding_neutral"])
                if m.padding_neutral
                else None
            )
        ),
        "padding said to change no adapter": _said(
            lambda _, m: (
                (replace(m, counts_padding=()), ["padding", "counts_padding", *m.counts_padding])
                if m.counts_padding
                else None
            )
        ),
        "rows said not to influence each other": _said(
            lambda _, m: None if m.batch_invariant else (replace(m, batch_invariant=True), ["batch_invariant"])
        ),
        "rows said to influence each other": _said(
            lambda _, m: (replace(m, batch_invariant=False), ["batch_invariant"]) if m.batch_invariant else None
        ),
        "zeros said to change nothing": _said(
            lambda _, m: (
                (replace(m, bank=replace(m.bank, fillable=True)), ["filling up", "fillable"])
                if m.bank is not None and not m.bank.fillable
                else None
            )
        ),
        "another base": _said(lambda _, m: (replace(m, base="sha256:" + "0" * 64), ["base"])),
        "another number of the graph": _said(
            lambda _, m: (replace(m, model_version=m.model_version % (2**31 - 2) + 1), ["model_version"])
        ),
        "a vocabulary with one word less": _said(
            lambda _, m: (
                replace(m, inputs=tuple(replace(one, limit=one.limit and max(1, one.limit - 1)) for one in m.inputs)),
                [one.name for one in m.inputs if one.limit],
            )
        ),
    },
)


# Texts.


def _tokenizer(change: Callable[[dict[str, object], Copy], bool]) -> Plant:
    def plant(copy: Copy) -> Sequence[Place] | None:
        record = copy.manifest.text
        if record is None:
            return None
        document = json.loads((copy.folder / record.tokenizer).read_text("utf-8"))
        if not change(document, copy):
            return None
        copy.change(record.tokenizer).write_text(json.dumps(document, ensure_ascii=False), "utf-8")
        return [record.tokenizer, "tokenizer"]

    return plant


def _two_words(document: dict[str, object], copy: Copy) -> bool:
    model = document.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(words, dict) or len(words) < 20:
        return False
    one, two = (str(word) for word in copy.rng.choice(sorted(words)[-len(words) // 2 :], 2, replace=False))
    words[one], words[two] = words[two], words[one]
    return True


def _letters(document: dict[str, object], _: Copy) -> bool:
    rules = document.get("normalizer")
    if not isinstance(rules, Mapping) or "lowercase" not in rules:
        return False
    document["normalizer"] = {**rules, "lowercase": not rules["lowercase"]}
    return True


def _without(key: str) -> Callable[[dict[str, object], Copy], bool]:
    def change(document: dict[str, object], _: Copy) -> bool:
        return document.get(key) is not None and not document.update({key: None})

    return change


_TEXTS = _kinds(
    "texts",
    {
        "two words of the tokenizer exchanged": _tokenizer(_two_words),
        "a tokenizer that keeps capitals": _tokenizer(_letters),
        "a tokenizer without special tokens": _tokenizer(_without("post_processor")),
        "a tokenizer without normalisation": _tokenizer(_without("normalizer")),
    },
)

# Golden batches.


def _batch(change: Callable[[list[dict[str, object]], Copy], Sequence[Place] | None]) -> Plant:
    """Change the rows of one golden batch."""

    def plant(copy: Copy) -> Sequence[Place] | None:
        path = copy.manifest.golden_batches
        if path is None:
            return None
        document = json.loads((copy.folder / path).read_text("utf-8"))
        batch = copy.choose(document["batches"])
        places = None if batch is None else change(batch["rows"], copy)
        if places is not None:
            file = copy.change(path)
            file.unlink()
            file.write_text(json.dumps(document, ensure_ascii=False), "utf-8")
        return places

    return plant


def _name(row: Mapping[str, object]) -> Place:
    return str(row["adapter"] or BASE)


def _two_answers(rows: list[dict[str, object]], copy: Copy) -> Sequence[Place] | None:
    pair = copy.choose([(one, other) for one, other in combinations(rows, 2) if one["answer"] != other["answer"]])
    if pair is None:
        return None
    one, other = pair
    one["answer"], other["answer"] = other["answer"], one["answer"]
    return [_name(one), _name(other)]


def _another_adapter(rows: list[dict[str, object]], copy: Copy) -> Sequence[Place] | None:
    pair = copy.choose([(one, other) for one in rows for other in rows if one["adapter"] != other["adapter"]])
    if pair is None:
        return None
    pair[0]["adapter"] = pair[1]["adapter"]
    return [_name(pair[0])]


_BATCHES = _kinds(
    "batches",
    {
        "an answer of another row in golden batches": _batch(_two_answers),
        "another adapter of a row in golden batches": _batch(_another_adapter),
    },
)

# Adapters that are applied in part or crossed, though all files of a client agree: only golden data can tell.


@dataclass(frozen=True)
class _Partial:
    """An adapter as a client with a fault applies it: `tensors` are those of its slots that are wrong."""

    adapter: str
    tensors: Weights
    places: Sequence[Place]


Applied = Callable[[OpenedBundle, str], Sequence[_Partial]]
"""Lists the ways in which an adapter can be applied wrongly."""


def _off(*, layers: bool) -> Applied:
    """List the sites of an adapter, or its layers, of which golden data are said to tell that they are off."""

    def applied(bundle: OpenedBundle, name: str) -> list[_Partial]:
        separation = bundle.record(name).golden.separation
        own, found = bundle.tensors(name), list[_Partial]()
        for fault in faults_of(bundle, name) if separation is not None else ():
            wrong = {slot: tensor for slot, tensor in fault.tensors.items() if tensor is not own[slot]}
            sites = list(dict.fromkeys(slot.site for slot in bundle.manifest.slots if slot.name in wrong))
            partial = fault.name.endswith(" off") and sites != [HEAD]
            known = separation is not None and fault.name not in separation.weak
            if partial and known and fault.name.startswith("layer ") == layers:
                found.append(_Partial(name, wrong, [fault.name, *sites, name]))
        return found

    return applied


def _of_another(bundle: OpenedBundle, name: str) -> list[_Partial]:
    """List the matrices of an adapter that another adapter has as well, at sites that are known to show."""
    if bundle.manifest.recorded is None:
        return []
    shown = {each.places[1] for each in _off(layers=False)(bundle, name)}
    own, found = bundle.tensors(name), list[_Partial]()
    for other in (each for each in bundle.names if each not in (None, name)):
        theirs, neutral = bundle.tensors(other), bundle.tensors(None)
        for slot in (one for one in bundle.manifest.slots if one.site in shown):
            mine, its = own[slot.name], theirs[slot.name]
            if mine.ndim < 2 or any(np.array_equal(each, neutral[slot.name]) for each in (mine, its)):
                continue
            fitted, common = np.zeros_like(mine), tuple(map(slice, map(min, mine.shape, its.shape)))
            fitted[common] = its[common]
            if not np.array_equal(mine, fitted):
                found.append(_Partial(name, {slot.name: fitted}, [slot.name, slot.site, name]))
    return found


def _in_files(applied: Applied) -> Plant:
    """Write an adapter wrongly to both of its files."""

    def plant(copy: Copy) -> Sequence[Place] | None:
        bundle = copy.opened()
        chosen = copy.choose([each for name in bundle.names if name is not None for each in applied(bundle, name)])
        if chosen is None:
            return None
        tensors = {**bundle.tensors(chosen.adapter), **chosen.tensors}
        copy.fill(chosen.adapter, tensors, precision=bundle.record(chosen.adapter).precision)
        return chosen.places

    return plant


def _in_bank(applied: Applied) -> Plant:
    """Write an adapter wrongly to the bank, in each graph that has it."""

    def plant(copy: Copy) -> Sequence[Place] | None:
        bundle, bank = copy.opened(), copy.manifest.bank
        names = () if bank is None else [name for name in bank.rows if name is not None]
        chosen = copy.choose([each for name in names for each in applied(bundle, name)])
        if bank is None or chosen is None:
            return None
        row = bank.rows.index(chosen.adapter)

        def change(slot: str, array: np.ndarray) -> None:
            own = chosen.tensors.get(slot)
            if own is not None:
                wide = [(0, most - size) for most, size in zip(array.shape[1:], own.shape, strict=True)]
                array[row] = np.pad(own, wide)

        _change_bank(copy, change)
        return chosen.places

    return plant


def _change_bank(copy: Copy, change: Callable[[str, np.ndarray], None]) -> None:
    """Change the tensors of the bank, each with the name of its slot, in each graph that has them."""
    bank = copy.manifest.bank
    for variant in (one.name for one in VARIANTS.values() if one.by_row):
        model = copy.graph(variant)
        if model is None or bank is None:
            continue
        for each in bank.tensors:
            if each.slot is not None:
                value = model.graph.initializers[each.name]
                array = _array(value)
                change(each.slot, array)
                _set(value, array)
        copy.keep(model, variant)


def _rows_shifted(copy: Copy) -> Sequence[Place] | None:
    """Give each adapter of the bank the tensors of the one before it; heads stay."""
    bank, sites = copy.manifest.bank, {slot.name: slot.site for slot in copy.manifest.slots}
    if bank is None or len(bank.rows) < 2:
        return None
    first = 0 if len(bank.rows) == 2 else 1  # one adapter alone changes places with the base

    def change(slot: str, array: np.ndarray) -> None:
        if sites[slot] != HEAD:
            array[first:] = np.roll(array[first:], 1, 0)

    _change_bank(copy, change)
    return [name or BASE for name in bank.rows[first:]]


def _in_baked(applied: Applied) -> Plant:
    """Bake an adapter wrongly."""

    def plant(copy: Copy) -> Sequence[Place] | None:
        bundle = copy.opened()
        files = {record.name: record.baked for record in copy.manifest.adapters if record.baked is not None}
        chosen = copy.choose([each for name in files for each in applied(bundle, name)])
        if chosen is None:
            return None
        file = files[chosen.adapter]
        model = ir.load(copy.folder / file)
        for slot, tensor in chosen.tensors.items():
            _set(model.graph.initializers[slot], tensor)
        copy.change(file).write_bytes(ir.to_proto(model).SerializeToString())
        return [*chosen.places, file]

    return plant


_SITE, _LAYER = _off(layers=False), _off(layers=True)

_GOLDEN = _kinds(
    "golden data",
    {
        "one site neutral": _in_files(_SITE),
        "one layer neutral": _in_files(_LAYER),
        "one site neutral in the bank": _in_bank(_SITE),
        "one layer neutral in the bank": _in_bank(_LAYER),
        "the rows of the bank shifted by one": _rows_shifted,
        "one site neutral in a baked graph": _in_baked(_SITE),
        "one layer neutral in a baked graph": _in_baked(_LAYER),
    },
)
_RECORDED = _kinds(
    "recorded runs",
    {
        "one tensor of another adapter": _in_files(_of_another),
        "one tensor of another adapter in the bank": _in_bank(_of_another),
        "one tensor of another adapter in a baked graph": _in_baked(_of_another),
    },
)

_STORED = (*_ADAPTERS, *_BANK, *_INPUTS, *_MANIFEST, *_TEXTS, *_BATCHES, *_GOLDEN, *_RECORDED)

FAULTS: tuple[Fault, ...] = (*_WEIGHTS, *_NODES, *_SHAPES, *_SITES, *_STORED)
"""Every kind, in the order in which they are planted."""
