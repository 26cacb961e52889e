"""Alternatives to a bundle for running adapters in one process: AdapterHub, PEFT, optimum, a session per adapter.

    make bench                                                  # this, too, in `.venv/alternatives`
    python benchmarks/alternatives.py --write                   # the tables and the chart of benchmarks/RESULTS.md
    python benchmarks/alternatives.py --shapes 1x16 --adapters 8

The adapters are AdapterHub's `double_seq_bn` (Houlsby) and a LoRA of PEFT, with random weights, on all-MiniLM-L6-v2.
They are imported, so that all ways compute the same function, which is checked before timing. Calls take turns, and
each ratio is of two calls of one round. AdapterHub and optimum want an older transformers than this project, and so an
environment of their own; ONNX Runtime there is the one that `make setup` installs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
from all import RESULTS, write
from kit.machine import description, load_average, warn_if_busy
from kit.part import OPTIONS, tell
from kit.tables import Spread, Table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import adapter_export as ae
from adapter_export.safe_io.output import Output

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv" / "alternatives" / "bin" / "python"
PICTURE = HERE / "alternatives.svg"
SHAPES = "1x16,1x128,8x64"


def main() -> None:
    """Measure, print, and write if that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("adapters", "bottleneck", "threads", "rounds", "seconds", "lengths", "shapes"):
        parser.add_argument(f"--{name}", **OPTIONS[name])
    parser.set_defaults(shapes=SHAPES, seconds=45.0)  # 15 s are five rounds of 13 ways
    parser.add_argument("--write", action="store_true", help="replace the tables and the chart of RESULTS.md")
    given = parser.parse_args()
    if not PYTHON.exists():
        sys.exit(f"error: AdapterHub, PEFT and optimum are not there: {PYTHON} is missing. `make bench` installs them.")
    load = load_average()
    warn_if_busy(load)
    machine = description(load, "cpu")
    with TemporaryDirectory(prefix="alternatives-") as made:
        folder = Path(made)
        _prepare(folder, given)
        tell("measuring")
        found = json.loads(_process("measure", folder, given))
    tables = [_table(one) for one in found["tables"]]
    machine = f"{machine} Beside it: {found['versions']}."
    print(machine, *(table.markdown() for table in tables), sep="\n\n")
    if given.write:
        write(RESULTS, "alternatives", machine, tables)
        _draw(tables[0])
        tell(f"wrote RESULTS.md and {PICTURE.name}")


def _prepare(folder: Path, given: argparse.Namespace) -> None:
    """Create the adapters with their libraries, import them, and build the subjects of the benchmark."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    import demo_data

    (folder / "base").symlink_to(demo_data.base_folder().resolve())
    tell("making adapters with AdapterHub and PEFT")
    _process("make", folder, given)
    base = ae.capture(folder / "base", folder / "model.pt")
    tell("importing them, and building bundles")
    own = [ae.import_adapterhub(folder / f"a{number}", base) for number in range(given.adapters)]
    lora = ae.import_peft(folder / "lora", base)
    plain = {"without_base_head": True, "force": True}
    ae.build(base, own, folder / "bundle", bake=[own[0].name], **plain)
    for precision in ("int8", "int8-weights"):
        ae.build(base, own[:1], folder / precision, base_precision=precision, variants=["slots"], **plain)
    ae.build(base, own[:1], folder / "optimized", optimize=True, variants=["slots"], **plain)
    ae.build(
        base, own[:1], folder / "int8-optimized", base_precision="int8", optimize=True, variants=["slots"], **plain
    )
    ae.build(base, [lora], folder / "bundle-lora", bake=["lora"], variants=["slots"], **plain)
    exported = base.exported(folder).path
    ir.save(products_alone(ir.load(exported)), exported.with_name("products.onnx"))


def products_alone(model: ir.Model) -> ir.Model:
    """The products of a base with its weights [k, n], each of an input float32 [batch, tokens, k], and nothing else."""
    graph = model.graph
    inputs: dict[int, ir.Value] = {}
    nodes, weights, outputs = [], [], []
    for node in graph:
        if node.op_type != "MatMul" or (weight := node.inputs[1]) is None or weight.const_value is None:
            continue
        inner = weight.const_value.shape[0]
        assert isinstance(inner, int)
        if inner not in inputs:
            shape = ir.Shape(["batch", "tokens", inner])
            inputs[inner] = ir.Value(name=f"x{inner}", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
        constant = ir.Value(name=f"w{len(nodes)}", const_value=weight.const_value, type=weight.type, shape=weight.shape)
        product = ir.node("MatMul", [inputs[inner], constant])
        product.outputs[0].name = f"y{len(nodes)}"
        nodes.append(product)
        weights.append(constant)
        outputs.append(product.outputs[0])
    opsets = graph.opset_imports
    made = ir.Graph(
        [*inputs.values()], outputs, nodes=nodes, initializers=weights, opset_imports=opsets, name="products"
    )
    return ir.Model(made, ir_version=10)


def _process(what: str, folder: Path, given: argparse.Namespace) -> str:
    """Run the other half of this program in its own environment, and return its output."""
    options = [f"--{name}={getattr(given, name)}" for name in vars(given) if name != "write"]
    command = [str(PYTHON), "-m", "kit.libraries", what, str(folder), *options]
    return subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=True).stdout


def _table(found: dict[str, Any]) -> Table:
    def cell(value: Any) -> Any:
        return Spread(**value) if isinstance(value, dict) else value

    rows = [[cell(value) for value in row] for row in found["rows"]]
    return Table(found["title"], found["columns"], rows, found["note"])


def _draw(table: Table) -> None:
    """Draw the first table: a bar for each way and shape."""
    figure = Figure(figsize=(8, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shapes, ways = table.columns[1:], [str(row[0]) for row in table.rows]
    height = 0.8 / len(shapes)
    for place, shape in enumerate(shapes):
        values = [row[1 + place] for row in table.rows]
        lengths = [value.median if isinstance(value, Spread) else 0.0 for value in values]
        axes.barh([line + height * place for line in range(len(ways))], lengths, height, label=shape)
    axes.set_yticks([line + height for line in range(len(ways))], ways)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time over that of slots in float32; shorter is faster")
    axes.legend(frameon=False, title="batch × tokens")
    with Output(PICTURE, force=True).file() as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
