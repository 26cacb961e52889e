"""Sandbox for libraries that read untrusted files: a child process with memory and time limits.

A crash of native code or a memory exhaustion ends only that process.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_export import errors
from adapter_export.errors import AdapterExportError
from adapter_export.safe_io.parsers import reason
from adapter_export.words import words_of

try:
    import resource
except ImportError:  # Windows, where only time is limited
    resource = None  # type: ignore[assignment]

MEMORY_STATUS = 3
"""Exit status of a child that ran out of memory."""

_CHILD = "from adapter_export.safe_io.child import answer; answer()"


@dataclass(frozen=True)
class Limits:
    """Time and memory limits of a child process.

    Attributes:
        seconds: timeout.
        bytes: memory that it may allocate, excluding mapped files, Python and the loaded libraries.
    """

    seconds: float
    bytes: int


def try_out(function: str, *arguments: str, limits: Limits, refusal: Callable[[str], AdapterExportError]) -> None:
    """Call `module:function` with texts in a new Python process, and re-raise its error of this package.

    A crash or an exceeded limit raises `refusal(reason)`. Does nothing if Python cannot be started, as in an embedded
    interpreter.
    """
    if not sys.executable:
        return
    task = json.dumps({"function": function, "arguments": arguments, "bytes": limits.bytes})
    # the child imports the same package, wherever this process found it
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD],  # `-P`: import nothing from the current folder
            input=task,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limits.seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise refusal(f"timeout after {limits.seconds:.0f} seconds") from error
    except OSError:
        return
    if done.returncode == MEMORY_STATUS:
        raise refusal(f"more than {limits.bytes / 1e6:,.0f} MB of memory")
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        raise refusal(f"a crash ({ended}){f': {lines[-1]}' if lines else ''}")
    facts: dict[str, Any] | None = json.loads(done.stdout.splitlines()[-1])
    if facts is not None:
        kind = getattr(errors, facts.pop("error"))
        raise errors.again(kind, {k: None if v is None else words_of(v) for k, v in facts.items()})


def answer() -> None:
    """Run the call read from standard input, and write its error as JSON, or `null`, to standard output."""
    task = json.loads(sys.stdin.read())
    output, sys.stdout = sys.stdout, sys.stderr
    module, _, name = task["function"].partition(":")
    function, facts = getattr(importlib.import_module(module), name), None
    limit_memory(task["bytes"])
    try:
        function(*task["arguments"])
    except MemoryError:
        os._exit(MEMORY_STATUS)
    except AdapterExportError as error:
        cause = error.__cause__
        if isinstance(cause, MemoryError) or "bad_alloc" in reason(cause or error):
            os._exit(MEMORY_STATUS)
        known = {name: getattr(error, name) for name in errors.FACTS}
        facts = {"error": type(error).__name__} | {k: None if v is None else v.to_json() for k, v in known.items()}
    output.write(f"{json.dumps(facts)}\n")
    output.flush()
    os._exit(0)  # do not wait for running threads of a library


def limit_memory(count: int) -> None:
    """Let this process allocate at most `count` more bytes, where the system can limit them."""
    if resource is not None:
        most = _allocated_bytes() + count
        # a crash is an expected outcome here, and needs no core dump
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # not `RLIMIT_AS`, which also counts mapped files and reserved addresses
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _allocated_bytes() -> int:
    """Return the bytes of memory allocated by this process, where the system reports them."""
    try:
        # the sixth field: pages of data and stack; `RLIMIT_DATA` limits the data, those of the interpreter included
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[5])
    except OSError:
        return 0
    return pages * resource.getpagesize()
