"""A base with many sites: four times the sites take four times the steps, counted in executed lines of this package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import random_adapter

from adapter_export.graph.kinds import BottleneckOptions, houlsby
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors

_WIDTH = 4


def _base(folder: Path, layers: int) -> Path:
    """Write sublayers `x + relu(x·up)·down` in sequence: three sites each."""
    rng = np.random.default_rng(0)
    nodes, weights, values, x = [], [], [], "x"
    for n in range(layers):
        for name in (f"up{n}", f"down{n}"):
            weights.append(numpy_helper.from_array((0.2 * rng.standard_normal([_WIDTH] * 2)).astype(np.float32), name))
        steps = (("MatMul", (x, f"up{n}"), "a"), ("Relu", (f"a{n}",), "r"))
        steps += (("MatMul", (f"r{n}", f"down{n}"), "h"), ("Add", (x, f"h{n}"), "x"))
        nodes += [helper.make_node(op, read, [f"{made}{n}"], name=f"{made}{n}") for op, read, made in steps]
        values += [f"{made}{n}" for _, _, made in steps]
        x = f"x{n}"
    infos = [helper.make_tensor_value_info(v, TensorProto.FLOAT, ["batch", "tokens", _WIDTH]) for v in ("x", *values)]
    graph = helper.make_graph(nodes, "deep", infos[:1], infos[-1:], weights, value_info=infos[1:-1])
    path = folder / f"{layers}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def _counted(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return the result of a call, and the number of executed lines of the package."""
    count = 0

    def line(_: FrameType, event: str, __: object) -> Any:
        nonlocal count
        count += event == "line"
        return line

    def frame(made: FrameType, _: str, __: object) -> Any:
        return line if "adapter_export" in made.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(frame)
    try:
        result = call()
        return result, count
    finally:
        sys.settrace(before)


def _steps(path: Path) -> dict[str, int]:
    base, opening = _counted(lambda: open_onnx(path))
    adapter = random_adapter("a", houlsby(BottleneckOptions("relu")), base)
    plan, planning = _counted(lambda: plan_slots([adapter], base.sites))
    _, inserting = _counted(lambda: insert_slots(base, plan))
    _, filling = _counted(lambda: slot_tensors(plan, adapter))
    return {"open": opening, "plan": planning, "insert": inserting, "fill": filling}


def test_steps_grow_with_the_sites(tmp_path: Path) -> None:
    few, many = _steps(_base(tmp_path, 40)), _steps(_base(tmp_path, 160))
    assert {name: many[name] < 4.4 * count for name, count in few.items()} == dict.fromkeys(few, True), (few, many)
