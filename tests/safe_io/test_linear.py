"""Readers take linear time: four times the input takes at most eight times as long."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import numpy as np
import pytest

from adapter_export.errors import AdapterError, FormatError, TensorError
from adapter_export.format.adapter_files import adapter_bytes, parse_adapter
from adapter_export.format.tensors import parse_tensors
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.kinds import KINDS, BottleneckOptions
from adapter_export.safe_io.documents import parse_json


def _adapter(sites: int) -> tuple[bytes, bytes]:
    ((name, graph),) = KINDS["pfeiffer"](BottleneckOptions()).graphs.items()
    widths = {"d": 2, "b": 1}
    weights = {
        f"s{number}.{parameter}": np.ones(shape, np.float32)
        for number in range(sites)
        for parameter, shape in graph.parameter_shapes(widths).items()
    }
    placements = {f"s{number}": Placement(name, widths) for number in range(sites)}
    return adapter_bytes(Adapter("a", "pfeiffer", "base", {name: graph}, placements, weights))


def _seconds(read: Callable[[], object]) -> float:
    start = time.process_time()
    read()
    return time.process_time() - start


def test_an_adapter_of_many_sites_is_read_in_linear_time() -> None:
    few, many = _adapter(500), _adapter(2000)

    def seconds(files: tuple[bytes, bytes]) -> float:
        return min(_seconds(lambda: parse_adapter(*files, ("g", "w"), "a")) for _ in range(2))

    assert seconds(many) < 8 * seconds(few)


def test_oversized_adapters_are_refused_before_analysis() -> None:
    ((name, graph),) = KINDS["pfeiffer"](BottleneckOptions()).graphs.items()
    placements = {f"s{number}": Placement(name, {"d": 2, "b": number + 1}) for number in range(150_000)}
    with pytest.raises(AdapterError, match="too many nodes and parameters"):
        Adapter("a", "pfeiffer", "base", {name: graph}, placements, {})


def test_oversized_json_is_refused_before_parsing() -> None:
    with pytest.raises(FormatError, match="too many values; found about 3,000,002; expected at most 2,000,000"):
        parse_json(b"[" + b"[]," * 1_500_000 + b"[]]", "a.json")


def test_many_values_are_made_without_a_look_for_cycles() -> None:
    """Python's collector went through all of them again and again: 2.4 s for 2.9 MB of lists in lists."""
    looks = list[str]()
    gc.callbacks.append(lambda phase, _: looks.append(phase))
    try:
        found = parse_json(b"[" + b"[[[[]]]]," * 200_000 + b"[]]", "a.json")
        assert looks.count("start") < 10
    finally:
        gc.callbacks.pop()
    assert isinstance(found, list)
    assert gc.isenabled()


def test_a_header_of_very_many_names_is_refused() -> None:
    header = b"{" + b",".join(b'"%d":{}' % number for number in range(100_001)) + b"}"
    with pytest.raises(TensorError, match="too many tensors; found 100,001"):
        parse_tensors(len(header).to_bytes(8, "little") + header, "w.safetensors")
