"""Hostile graphs: none hangs, and each results in a base or a clear error."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from adapter_export.errors import BaseModelError, FileError, NoSitesError
from adapter_export.onnx_backend import model_session
from adapter_export.onnx_backend.base import onnx_base
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.base.structure import ATTRIBUTES

_D = 8
_OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]


def _saved(
    path: Path, nodes: Sequence[onnx.NodeProto], *, functions: Sequence[onnx.FunctionProto] = (), axes: int = 2
) -> Path:
    weight = helper.make_tensor(
        "w", TensorProto.FLOAT, [_D] * 2 if axes == 2 else [1] * axes, [0.2] * (_D**2 if axes == 2 else 1)
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", _D])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [
        helper.make_tensor("count", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("true", TensorProto.BOOL, [], [True]),
        helper.make_tensor("zeros", TensorProto.FLOAT, [_D], np.zeros(_D, np.float32)),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight, *constants])
    onnx.save(helper.make_model(graph, opset_imports=_OPSETS, functions=functions), path)
    return path


def _function(name: str, *calls: str) -> onnx.FunctionProto:
    """Return a function that calls others one after the other."""
    names = ["a", *(f"v{place}" for place in range(len(calls) - 1)), "c"]
    nodes = [
        helper.make_node(call, [names[place]], [names[place + 1]], domain="" if call == "Relu" else "f")
        for place, call in enumerate(calls)
    ]
    return helper.make_function("f", name, ["a"], ["c"], nodes, _OPSETS)


def _endless() -> list[onnx.NodeProto]:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["twice"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("twice", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["count", "true", "zeros"], ["looped"], body=body)
    return [loop, helper.make_node("Add", ["x", "looped"], ["y"])]


def test_a_cycle_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["y", "x"], ["m"]), helper.make_node("Add", ["m", "x"], ["y"])]
    with pytest.raises(BaseModelError, match="has a cycle"):
        open_onnx(_saved(tmp_path / "a.onnx", nodes))


def test_nodes_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    product, total = helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "x"], ["y"])
    found = open_onnx(_saved(tmp_path / "a.onnx", [total, product]))
    usual = open_onnx(_saved(tmp_path / "b.onnx", [product, total]))
    assert [node.op_type for node in found.model.graph] == ["MatMul", "Add"]
    assert [site.path for site in found.sites] == [site.path for site in usual.sites] != []
    assert found.fingerprint == usual.fingerprint


def test_functions_that_double_are_counted_not_written_out(tmp_path: Path) -> None:
    functions = [_function("f0", "Relu"), *(_function(f"f{n}", f"f{n - 1}", f"f{n - 1}") for n in range(1, 40))]
    with pytest.raises(BaseModelError, match="found 549,755,813,888"):
        open_onnx(_saved(tmp_path / "a.onnx", [helper.make_node("f39", ["x"], ["y"], domain="f")], functions=functions))


def test_a_function_that_calls_itself_is_named(tmp_path: Path) -> None:
    functions = [_function("f0", "Relu", "f1"), _function("f1", "f0")]
    with pytest.raises(BaseModelError, match="has a recursive function; found `f"):
        open_onnx(_saved(tmp_path / "a.onnx", [helper.make_node("f1", ["x"], ["y"], domain="f")], functions=functions))


def test_a_loop_without_an_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_session, "_MOST_SECONDS", 0.5)
    with pytest.raises(BaseModelError, match="did not finish"):
        open_onnx(_saved(tmp_path / "a.onnx", _endless()))


@pytest.mark.parametrize("operator", ["Identity", "Cast"])
def test_a_long_chain_behind_an_input_is_followed(tmp_path: Path, operator: str) -> None:
    to = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
    names = ["x", *(f"v{place}" for place in range(3000))]
    chain = [helper.make_node(operator, [a], [b], **to) for a, b in pairwise(names)]
    with pytest.raises(NoSitesError):
        open_onnx(_saved(tmp_path / "a.onnx", [*chain, helper.make_node("MatMul", [names[-1], "w"], ["y"])]))


def test_too_many_axes_are_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="too many axes; found `w` with 70"):
        open_onnx(_saved(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], axes=70))


def test_an_input_of_no_type_is_named(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])])
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    onnx.save(model, path)
    with pytest.raises(BaseModelError, match="`x`: has an input or output of unknown type"):
        open_onnx(path)


def _with_type(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("transA", "x"))


def _without_value(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"]))


def _of_no_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = TensorProto.UNDEFINED


def _of_negative_length(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -5


def _of_far_version(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 2**40


def _without_factor(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = ""


def _referring(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(
        onnx.AttributeProto(name="transB", ref_attr_name="a", type=onnx.AttributeProto.INT)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_with_type, "an attribute of a wrong type; found `MatMul`, `transA` of type STRING"),
        (_without_value, "has a tensor that cannot be read, `c`; found Constant node"),
        (_of_no_type, "has a tensor that cannot be read, `w`"),
        (_of_negative_length, "has an input of negative length"),
        (_of_far_version, "imports an opset that does not exist; found 1099511627776"),
        (_without_factor, "a node with a wrong number of inputs or outputs"),
        (_referring, "has an attribute that refers to a function; found `MatMul`, `transB`"),
    ],
)
def test_a_broken_rule_of_onnx_is_named(tmp_path: Path, change: Callable[[onnx.ModelProto], None], words: str) -> None:
    path = _saved(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])])
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    with pytest.raises(BaseModelError, match=words):
        open_onnx(path)


def test_attributes_have_one_type_in_all_operators_of_onnx() -> None:
    schemas = onnx.defs.get_all_schemas_with_history()
    declared = {(name, one.type.name) for schema in schemas for name, one in schema.attributes.items()}
    assert {(name, kind) for name, kind in declared if name in ATTRIBUTES} <= {
        (n, t.name) for n, t in ATTRIBUTES.items()
    }


def test_a_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], name="somename")])
    path.write_bytes(path.read_bytes().replace(b"somename", b"\xff\xfemename"))
    with pytest.raises(BaseModelError, match="a name that is not UTF-8"):
        open_onnx(path)


def test_a_mistake_of_our_own_is_not_blamed_on_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(_: object) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr(onnx_base, "flow_graph", mistaken)
    with pytest.raises(KeyError):
        open_onnx(_saved(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])]))


def test_a_file_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.onnx")
    with pytest.raises(FileError, match="is not a regular file; found a FIFO"):
        open_onnx(tmp_path / "a.onnx")
