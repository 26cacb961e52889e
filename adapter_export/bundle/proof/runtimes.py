"""Golden vectors with other providers than the CPU's, and in the ONNX Runtime of another Python."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from adapter_export.bundle.bundle_reader import Graph, OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Golden
from adapter_export.bundle.proof.compare_arrays import compare, missing
from adapter_export.bundle.report import BASE
from adapter_export.errors import FormatError, RequestError, UsageError
from adapter_export.format.check_report import ComparisonRecord, Finding
from adapter_export.providers import PROVIDERS, ProviderName
from adapter_export.runtime.self_check import ways
from adapter_export.runtime.session import Session
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.tables import number_of
from adapter_export.words import argument, joined

NAME = "other runtime"

_SECONDS = 600
"""Timeout of all golden vectors in another Python."""

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
    with temporary_folder() as folder:
        for number, (each, at) in enumerate(requests):
            case = each.cases[at]
            np.savez(folder / f"{number}.npz", **graph.feeds(case.arrays, (each.adapter,) * case.batch))  # type: ignore[arg-type]
        answer = _run(python, graph.bundle.home.resolve() / graph.file, len(requests), folder)
        release = f"onnxruntime {answer['version']}"
        if "error" in answer:
            yield Finding.tested(NAME, release, False, f"cannot run {graph.file}: {answer['error']}")
            return
        results: dict[str | None, list[tuple[str, ComparisonRecord]]] = {}
        for number, (each, at) in enumerate(requests):
            with np.load(folder / f"{number}.found.npz", allow_pickle=False) as archive:
                results.setdefault(each.adapter, []).extend(_compared(dict(archive), each, at))
    for adapter, compared in results.items():
        right, detail = _judged(compared)
        yield Finding.tested(NAME, f"{release}, {adapter or BASE}", right, detail)


def check_providers(
    bundle: OpenedBundle, golden: Sequence[Golden], names: Sequence[ProviderName] = ()
) -> Iterator[Finding]:
    """Yield a finding for each provider: golden vectors are within their budget, or not, or it is not available.

    Default: the providers of the installed ONNX Runtime, without the CPU's.
    """
    available = ort.get_available_providers()
    here: list[ProviderName] = [name for name, row in PROVIDERS.items() if row.device in available and name != "cpu"]
    if not (names or here):
        claim = "other providers compute the golden vectors"
        reason = f"onnxruntime {ort.__version__}, as installed here, has only the CPU's"
        yield Finding.unverified("providers", "others", reason, claim, "ONNX Runtime")
    for name in names or here:
        try:
            yield check_provider(bundle, golden, name)
        except UsageError as error:
            yield Finding.unverified(
                "providers", name, joined(filter(None, (error.what, error.fix)), ": "), _claim(name), name
            )


def check_provider(bundle: OpenedBundle, golden: Sequence[Golden], name: ProviderName) -> Finding:
    """Compare the results of a provider with golden vectors, in each graph through which its sessions answer.

    A provider that cannot open or compute a graph has failed.

    Raises:
        UsageError: it is not available here, or the bundle has no graph for it.
    """
    try:
        session = bundle.bundle.session_on(bundle.bundle.graphs(name))
        compared = [comparison for each in golden for comparison in _golden_runs(bundle, session, each)]
        right, detail = _judged(compared)
    except (RequestError, FormatError) as error:
        right, detail = False, error.message
    return Finding.tested("providers", name, right, detail, _claim(name), name)


def _claim(name: ProviderName) -> str:
    return f"`{name}` computes the golden vectors"


def _golden_runs(bundle: OpenedBundle, session: Session, golden: Golden) -> Iterator[tuple[str, ComparisonRecord]]:
    for by_row in ways(session, golden.adapter):
        for at, case in enumerate(golden.cases):
            adapters = [golden.adapter] * case.batch if by_row else None
            outputs = session.run(
                case.arrays, None if by_row else golden.adapter, adapters=adapters, allow_padding=True
            )
            way = "by row, " if by_row else ""
            for place, comparison in _compared(outputs, golden, at, without=bundle.manifest.checksums):
                yield f"{golden.adapter or BASE}, {way}{place}", comparison


def _judged(compared: Sequence[tuple[str, ComparisonRecord]]) -> tuple[bool, str]:
    """Return whether all comparisons passed, and a summary."""
    wrong = [f"{place}: {'; '.join(comparison.faults)}" for place, comparison in compared if not comparison.passed]
    worst = max((comparison.ratio for _, comparison in compared), default=0.0)
    detail = "; ".join(wrong[:3]) or f"{number_of(len(compared), 'golden output')}, worst {worst:.2f} of its budget"
    return bool(compared) and not wrong, detail


def _compared(
    outputs: Mapping[str, np.ndarray], golden: Golden, at: int, without: str | None = None
) -> Iterator[tuple[str, ComparisonRecord]]:
    for name, expected in golden.outputs[at].items():
        if name == without:
            continue
        place = f"{golden.cases[at].name}, {name}"
        if name not in outputs:
            yield place, missing(golden.budgets[name])
            continue
        stored = golden.stored({name: outputs[name]})[name]
        for _, elements in golden.parts(at, name):
            if elements is None or elements.any():
                yield place, compare(stored, expected, golden.budgets[name], where=elements)


def _run(python: str, model: Path, requests: int, folder: Path) -> dict[str, str]:
    """Run the other Python; return its version of ONNX Runtime, and an error if there was one."""
    try:
        command = [python, "-c", _RUN, str(model), str(requests)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=True)
        answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
        return answer
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"it ends with {error.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_SECONDS} seconds"
    except (OSError, ValueError, IndexError) as error:
        reason = str(error)
    raise UsageError(
        "the other Python cannot run the graph",
        where=argument("runtimes", [python], option="runtime"),
        found=reason,
        expected="a Python with numpy and onnxruntime",
        fix="make an environment, and install the release there: `pip install onnxruntime==1.21.1`",
    )
