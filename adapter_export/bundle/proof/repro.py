"""A folder that repeats one fault alone, in the layout of ONNX's own test cases."""

from __future__ import annotations

import platform
import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from adapter_export.bundle.proof.lockstep import Lockstep
from adapter_export.errors import WriteError
from adapter_export.format.check_report import LocationRecord
from adapter_export.format.files import canonical_json
from adapter_export.version import __version__

DATA = "test_data_set_0"


def write_repro(lockstep: Lockstep, location: LocationRecord, folder: Path) -> Path:
    """Write the step of a location's node as a graph of its own, with what it reads and what it should give.

    The folder holds `model.onnx`, `test_data_set_0/input_*.pb` and `output_0.pb`, as ONNX's test runner reads them,
    `command.txt`, `versions.json` and `report.json`. Returns the folder: a new one inside, where several faults are
    written.

    Raises:
        WriteError: the operating system refused.
    """
    assert location.node is not None
    name = location.node.node
    step = lockstep.step(name)
    values = {own: value.value for own, value in lockstep.values([*step.reads, name]).items()}
    expected = values.pop(name)
    feeds = {**lockstep.feeds, **values}
    model = step.model.clone()
    for value in [value for value in model.graph.inputs if value.is_initializer()]:  # slots, as they are fed
        model.graph.inputs.remove(value)
        if value.name in feeds:
            value.const_value = ir.tensor(feeds[value.name], name=value.name)
    target = folder / f"{location.adapter or 'base'}_{location.flavour}"
    try:
        (target / DATA).mkdir(parents=True, exist_ok=True)
        onnx.save(_whole(model), target / "model.onnx")
        for at, each in enumerate(model.graph.inputs):
            _write(target / DATA / f"input_{at}.pb", feeds[each.name or ""], each.name or "")
        _write(target / DATA / "output_0.pb", expected, name)
        options = {"against": "MODEL", "only": location.adapter or "base", "case": location.case}
        options |= {} if location.flavour == "slots" else {"flavour": location.flavour}
        given = [word for name, value in options.items() for word in (f"--{name}", value)]
        words = ["adapter-export", "check", str(lockstep.graph.bundle.folder), *given]
        (target / "command.txt").write_text(f"{shlex.join(words)}\n", "utf-8")
        versions = {"adapter-export": __version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__}
        versions |= {"numpy": np.__version__, "python": platform.python_version(), "machine": platform.machine()}
        versions |= {"reference": lockstep.runner.description}
        (target / "versions.json").write_bytes(canonical_json(versions))
        (target / "report.json").write_bytes(canonical_json(asdict(location)))
    except OSError as error:
        raise WriteError(target, error.strerror or error) from error
    return target


def _whole(model: ir.Model) -> onnx.ModelProto:
    """The model with its weights inside of it."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    return ir.to_proto(model)


def _write(path: Path, array: np.ndarray, name: str) -> None:
    path.write_bytes(numpy_helper.from_array(np.ascontiguousarray(array), name).SerializeToString())
