"""A child process that answers many calls of one function, with limits of memory and of the time of each call."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from threading import Event, Lock, Timer
from typing import Any

from adapter_export.errors import AdapterExportError
from adapter_export.safe_io.child import MEMORY_STATUS, Limits, limit_memory

_CHILD = f"from {__name__} import answer_calls; answer_calls()"

_START = 60.0
"""Seconds in which the child must be ready."""


class ChildService:
    """Answers calls in a child process, which starts with the first call, and again after one that broke a limit.

    A crash, a call that takes too long, and a call that needs too much memory end only the child. Thread-safe: calls
    run one after another.

    Args:
        function: `module:function`, which takes a JSON document and returns one.
        limits: time of a call, and memory of the child.
        refusal: the error for a call that broke a limit.
    """

    def __init__(self, function: str, limits: Limits, refusal: Callable[[str], AdapterExportError]) -> None:
        self._function, self._limits, self._refusal = function, limits, refusal
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._ending: weakref.finalize[Any, Any] | None = None

    def __call__(self, document: object) -> Any:
        """Return the answer to a document; the refusal if the child crashed or exceeded a limit."""
        with self._lock:
            if self._process is None:
                self._process = self._start()
            return json.loads(self._exchange(self._process, document, self._limits.seconds))

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[str]:
        if not sys.executable:
            raise self._refusal("Python cannot be started: this interpreter is embedded")
        # the child imports the same package, wherever this process found it
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD],  # `-P`: import nothing from the current folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
            env=environment,
        )
        self._ending = weakref.finalize(self, _end_process, process)
        self._exchange(process, {"function": self._function, "bytes": self._limits.bytes}, _START)
        return process

    def _exchange(self, process: subprocess.Popen[str], document: object, seconds: float) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        late = Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = Timer(seconds, stop)
        timer.start()
        try:
            process.stdin.write(f"{json.dumps(document)}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # the child has ended
            line = ""
        except BaseException:  # an interrupt: the answer of this call must not become that of the next
            self._end()
            raise
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            status = process.wait()
            self._end()
            if late.is_set():
                raise self._refusal(f"timeout after {seconds:g} seconds")
            if status == MEMORY_STATUS:
                raise self._refusal(f"more than {self._limits.bytes / 1e6:,.0f} MB of memory")
            raise self._refusal(f"a crash (signal {-status})" if status < 0 else f"a crash (exit status {status})")
        return line

    def _end(self) -> None:
        self._process = None
        if self._ending is not None:
            self._ending()


def _end_process(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # unsent characters
                continue


def answer_calls() -> None:
    """Answer calls from standard input, a line each, on standard output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent
    # a library that prints must not write into the answers
    output, sys.stdout = sys.stdout, sys.stderr
    first = json.loads(sys.stdin.readline())
    module, _, name = first["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    # after the import, whose memory does not count
    limit_memory(first["bytes"])
    output.write("null\n")
    output.flush()
    for line in sys.stdin:
        try:
            document = json.dumps(function(json.loads(line)))
        except MemoryError:
            os._exit(MEMORY_STATUS)
        output.write(f"{document}\n")
        output.flush()
