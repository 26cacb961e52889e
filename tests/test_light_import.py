"""Light imports: the package and its help pages start at once, and the runtime needs two libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "transformers", "numpy", "matplotlib")
LIMIT_S = 0.5
TRIES = 5

pytestmark = pytest.mark.starts_program


def _loaded(code: str, names: tuple[str, ...]) -> str:
    """Return the given modules that are loaded after running the code in a fresh interpreter."""
    show = f"print(); print(*(name for name in {names!r} if name in sys.modules))"
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code, end.code\n{show}"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    return found.stdout.splitlines()[-1]


def _help(*arguments: str) -> str:
    return f"from adapter_export.cli.main import main; main([*{arguments!r}, '--help'])"


def _least_time(code: str) -> float:
    """Return the processor seconds of the fastest of several fresh interpreters, independent of other load."""
    show = "import time\nprint()\nprint(time.process_time())"
    program = f"try:\n    {code}\nexcept SystemExit as end:\n    assert not end.code, end.code\n{show}"
    times = []
    for _ in range(TRIES):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        times.append(float(done.stdout.splitlines()[-1]))
        if times[-1] < LIMIT_S:
            break
    return min(times)


@pytest.mark.parametrize("code", ["import adapter_export", _help()], ids=["import", "help"])
def test_the_package_and_its_help_load_nothing_heavy(code: str) -> None:
    assert _loaded(code, HEAVY) == ""


def test_the_help_of_no_command_loads_a_framework() -> None:
    """All of them in one process: what one loads stays there."""
    helped = "assert not any(main([name, '--help'], standalone_mode=False) for name in COMMANDS)"
    code = f"from adapter_export.cli.main import COMMANDS, main; {helped}"
    assert _loaded(code, ("torch", "onnx", "onnxruntime", "transformers")) == ""


@pytest.mark.parametrize("code", ["import adapter_export", _help()], ids=["import", "help"])
def test_the_package_and_its_help_answer_at_once(code: str) -> None:
    assert _least_time(code) < LIMIT_S


def test_a_bundle_is_built_and_changed_without_the_libraries_of_extras() -> None:
    code = "import adapter_export.bundle.build_plan, adapter_export.bundle.change, adapter_export.bundle.proof.prove"
    assert _loaded(code, ("httpx2", "huggingface_hub", "model_signing", "fastapi", "torch")) == ""


def test_a_path_needs_no_library_of_hubs() -> None:
    local = "from adapter_export.address import locate; from pathlib import Path; locate(Path(), 'model')"
    opening = "import adapter_export as ae; ae.inspect, ae.capture, ae.train, ae.build, ae.serve"
    clients = ("httpx2", "huggingface_hub", "datasets", "pyarrow")
    assert _loaded(f"{local}; locate('a', 'table'); locate('a', 'artifact'); {opening}", clients) == ""
    helped = "assert not any(main([name, '--help'], standalone_mode=False) for name in COMMANDS)"
    assert _loaded(f"from adapter_export.cli.main import COMMANDS, main; {helped}", clients) == ""


def test_the_runtime_needs_numpy_and_onnxruntime_alone() -> None:
    unwanted = ("torch", "onnx", "onnx_ir", "safetensors", "rich", "click", "tokenizers")
    assert _loaded("import adapter_export.runtime", unwanted) == ""
    assert _loaded("import adapter_export.runtime", ("numpy", "onnxruntime")) == "numpy onnxruntime"
