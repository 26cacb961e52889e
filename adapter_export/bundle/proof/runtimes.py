"""The golden vectors on other processors than the CPU, and in the ONNX Runtime of another Python."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort

from adapter_export.bundle.bundle_reader import Graph
from adapter_export.bundle.golden import Golden
from adapter_export.bundle.proof.compare_arrays import compare, missing
from adapter_export.bundle.report import BASE
from adapter_export.errors import RequestError, UsageError, argument
from adapter_export.format.check_report import ComparisonRecord, Finding, Status
from adapter_export.runtime.graphs import FAILURES, PROVIDERS, run_session

NAME = "other runtime"
CPU = "CPUExecutionProvider"
_REFUSED: tuple[type[Exception], ...] = (RequestError, *FAILURES)

_SECONDS = 600

_RUN = """
import json, sys
import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state
failures = [one for one in vars(state).values() if isinstance(one, type) and issubclass(one, Exception)]
options = ort.SessionOptions()
options.log_severity_level = 4
said = {"version": ort.__version__}
try:
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for at in range(int(sys.argv[2])):
        with np.load(f"{at}.npz", allow_pickle=False) as feeds:
            found = session.run(names, dict(feeds))
        np.savez(f"{at}.found.npz", **dict(zip(names, found)))
except (OSError, RuntimeError, ValueError, *failures) as error:
    said["error"] = str(error).partition(chr(10))[0]
print(json.dumps(said))
"""
"""Runs in the other Python: a graph, and a number of requests in the working directory."""


def check_runtime(python: str, graph: Graph, golden: Sequence[Golden]) -> Iterator[Finding]:
    """Run the golden vectors of each adapter in another Python, and compare what its ONNX Runtime computes.

    Raises:
        UsageError: `python` does not run, or has no ONNX Runtime with NumPy.
    """
    requests = [(each, at) for each in golden for at in range(len(each.cases))]
    with TemporaryDirectory(prefix="adapter-export-") as temporary:
        folder = Path(temporary)
        for number, (each, at) in enumerate(requests):
            case = each.cases[at]
            np.savez(folder / f"{number}.npz", **graph.feeds(case.arrays, (each.adapter,) * case.batch))  # type: ignore[arg-type]
        said = _run(python, graph.bundle.home.resolve() / graph.file, len(requests), folder)
        release = f"onnxruntime {said['version']}"
        if "error" in said:
            yield Finding.tested(NAME, release, False, f"cannot run {graph.file}: {said['error']}")
            return
        results: dict[str | None, list[tuple[str, ComparisonRecord]]] = {}
        for number, (each, at) in enumerate(requests):
            with np.load(folder / f"{number}.found.npz", allow_pickle=False) as found:
                results.setdefault(each.adapter, []).extend(_compared(dict(found), each, at))
    for adapter, compared in results.items():
        right, detail = _judged(compared)
        yield Finding.tested(NAME, f"{release}, {adapter or BASE}", right, detail)


def check_providers(graph: Graph, golden: Sequence[Golden], names: Sequence[str] | None = None) -> Iterator[Finding]:
    """Run the golden vectors on each other provider of ONNX Runtime that is here, by default all but the CPU's.

    One that does not start, or cannot run the graph, is open.
    """
    here = [name for name in ort.get_available_providers() if name not in (CPU, "AzureExecutionProvider")]
    others = here if names is None else names
    if not others:
        claim = "other providers than the CPU's give the same"
        reason = f"onnxruntime {ort.__version__}, as installed here, has only the CPU's"
        yield Finding.unverified("providers", "others", reason, claim, "ONNX Runtime")
    for name in others:
        status: Status = "unverified"
        try:
            compared = list(_on_provider(name, graph, golden))
        except _REFUSED as error:
            detail = str(error).partition("\n")[0]
        else:
            right, detail = _judged(compared)
            status = "tested" if right else "failed"
        claim = f"`{name}` gives what the golden vectors say"
        yield Finding("providers", name, claim, status, f"{graph.file}, {name}", detail)


def _on_provider(name: str, graph: Graph, golden: Sequence[Golden]) -> Iterator[tuple[str, ComparisonRecord]]:
    options, settings = ort.SessionOptions(), dict(PROVIDERS.values()).get(name, {})
    options.log_severity_level = 4
    path = str(graph.bundle.home / graph.file)
    session = ort.InferenceSession(path, options, providers=[(name, settings)])
    if session.get_providers()[0] != name:  # it falls back to the CPU with a log line only
        raise RequestError(f"{name} does not start here", found=f"a session on {session.get_providers()[0]}")
    for each in golden:
        for at, case in enumerate(each.cases):
            found = run_session(session, graph.feeds(case.arrays, (each.adapter,) * case.batch))
            yield from ((f"{each.adapter or BASE}, {place}", one) for place, one in _compared(found, each, at))


def _judged(compared: Sequence[tuple[str, ComparisonRecord]]) -> tuple[bool, str]:
    """Return whether all comparisons passed, and a summary."""
    wrong = [f"{place}: {'; '.join(one.faults)}" for place, one in compared if not one.passed]
    worst = max((one.ratio for _, one in compared), default=0.0)
    detail = "; ".join(wrong[:3]) or f"{len(compared)} golden outputs, worst {worst:.2f} of its budget"
    return bool(compared) and not wrong, detail


def _compared(found: dict[str, np.ndarray], golden: Golden, at: int) -> Iterator[tuple[str, ComparisonRecord]]:
    for name, expected in golden.outputs[at].items():
        place = f"{golden.cases[at].name}, {name}"
        if name not in found:
            yield place, missing(golden.budgets[name])
            continue
        for _, elements in golden.parts(at, name):
            if elements is None or elements.any():
                yield place, compare(found[name], expected, golden.budgets[name], where=elements)


def _run(python: str, model: Path, requests: int, folder: Path) -> dict[str, str]:
    """Run the other Python; return its version of ONNX Runtime, and an error if there was one."""
    try:
        command = [python, "-c", _RUN, str(model), str(requests)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=True)
        said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
        return said
    except subprocess.CalledProcessError as error:
        found = (error.stderr.strip().splitlines() or [f"it ends with {error.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        found = f"no answer within {_SECONDS} seconds"
    except (OSError, ValueError, IndexError) as error:
        found = str(error)
    raise UsageError(
        "the other Python cannot run the graph",
        where=argument("runtimes", [python], option="runtime"),
        found=found,
        expected="a Python with numpy and onnxruntime",
        fix="make an environment, and install the release there: `pip install onnxruntime==1.21.1`",
    )
