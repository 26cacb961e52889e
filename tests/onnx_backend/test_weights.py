from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_WRITE = """
import resource, sys
from pathlib import Path
import onnx_ir as ir
from adapter_export.onnx_backend.base.external import write_model
source, target = map(Path, sys.argv[1:])
size = 20_000_000
with (source / "hole").open("wb") as file:
    file.truncate(4 * size * 4)
weights = [
    ir.ExternalTensor(
        "hole", 4 * size * i, 4 * size, ir.DataType.FLOAT, shape=ir.Shape([size]), name=f"w{i}", base_dir=source
    )
    for i in range(4)
]
values = [ir.Value(name=w.name, shape=w.shape, type=ir.TensorType(w.dtype), const_value=w) for w in weights]
total = ir.Node("", "Sum", values)
total.outputs[0].name = "total"
total.outputs[0].type, total.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([size])
graph = ir.Graph([], [total.outputs[0]], nodes=[total], initializers=values, opset_imports={"": 17}, name="g")
model = ir.Model(graph, ir_version=10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_model(model, target / "model.onnx")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
@pytest.mark.extended
def test_a_base_is_written_without_being_in_memory(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    command = [sys.executable, "-c", _WRITE, str(tmp_path / "source"), str(tmp_path / "target")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "target" / "base.bin").stat().st_size == 4 * 4 * 20_000_000
    assert int(done.stdout) < 60
    (tmp_path / "target" / "base.bin").unlink()
