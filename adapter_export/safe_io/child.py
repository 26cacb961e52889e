"""Libraries that read files of others, tried out in a process of its own, with limits of memory and time.

A crash of C++ code, or memory without end, takes that process alone.
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

try:
    import resource
except ImportError:  # Windows; there time alone is limited
    resource = None  # type: ignore[assignment]

_MEMORY = 3
"""The exit status of a child for which there was not enough memory."""

_CHILD = "from adapter_export.safe_io.child import answer; answer()"


@dataclass(frozen=True)
class Limits:
    """The time and memory that a child process may use.

    Attributes:
        seconds: until it is stopped.
        bytes: of memory that it asks for; files that it maps do not count, nor what Python and the libraries take.
    """

    seconds: float
    bytes: int


def try_out(function: str, *arguments: str, limits: Limits, refusal: Callable[[str], AdapterExportError]) -> None:
    """Call `module:function` with texts in a new Python process, and raise the error of this package that it raises.

    A process that crashes, takes too long or needs too much memory is `refusal(reason)`. Where Python cannot be
    started, as inside another program, nothing is tried.
    """
    if not sys.executable:
        return
    task = json.dumps({"function": function, "arguments": arguments, "bytes": limits.bytes})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD],  # no module from the current folder, which may be another's
            input=task,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limits.seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise refusal(f"no end after {limits.seconds:.0f} seconds") from error
    except OSError:
        return
    if done.returncode == _MEMORY:
        raise refusal(f"more than {limits.bytes / 1e6:,.0f} MB of memory")
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        raise refusal(f"a crash ({ended}){f': {said[-1]}' if said else ''}")
    facts: dict[str, Any] | None = json.loads(done.stdout.splitlines()[-1])
    if facts is not None:
        raise errors.again(getattr(errors, facts.pop("error")), facts)


def answer() -> None:
    """Do what standard input asks for; on standard output, the error that it raised, as JSON, or `null`."""
    task = json.loads(sys.stdin.read())
    output, sys.stdout = sys.stdout, sys.stderr
    module, _, name = task["function"].partition(":")
    function, facts = getattr(importlib.import_module(module), name), None
    if resource is not None:
        most = _taken() + task["bytes"]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        function(*task["arguments"])
    except MemoryError:
        os._exit(_MEMORY)
    except AdapterExportError as error:
        cause = error.__cause__
        if isinstance(cause, MemoryError) or "bad_alloc" in reason(cause or error):
            os._exit(_MEMORY)
        known = {name: getattr(error, name) for name in errors.FACTS}
        facts = {"error": type(error).__name__} | {k: None if v is None else errors.both(v) for k, v in known.items()}
    output.write(f"{json.dumps(facts)}\n")
    output.flush()
    os._exit(0)  # threads of a library that are at work still are not waited for


def _taken() -> int:
    """The bytes of memory that this process has asked for so far, where the system says it."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[5])
    except OSError:
        return 0
    return pages * resource.getpagesize()
