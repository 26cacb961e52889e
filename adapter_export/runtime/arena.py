"""Memory arena shared by all sessions on the CPU, which gives unused memory back to the system.

ONNX Runtime keeps the memory of the largest call in an arena per session, and returns it only at the end of a call with
the run option `memory.enable_memory_arena_shrinkage`. With one arena for all sessions, a call of any of them is enough.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from threading import Lock

import numpy as np
import onnxruntime as ort

SHARED: Mapping[str, str] = {"session.use_env_allocators": "1"}
"""Settings of a session that allocates from the shared arena."""

PERIOD = 1.0
"""Seconds between calls that return memory. Pages that a call returns must be mapped again by the next one."""

_TIMES = 3
"""Times that `return_memory` returns memory after the last call, whose inputs and outputs may live longer."""

_M_ARENA_MAX = -8
"""Parameter of `mallopt` in glibc's malloc.h."""

_SHRINKING = "memory.enable_memory_arena_shrinkage"

_IDENTITY = (
    b'\x08\x08:9\n\x12\n\x01x\x12\x01y"\x08Identity:\x00\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
"""ONNX model `y = Identity(x)` of float32 [1]: IR version 8, opset 17."""


class _Clock:
    """Time of the last call that returned memory, and the number of times that memory is still to be returned."""

    def __init__(self) -> None:
        self._lock = Lock()
        # monotonic: the clock of the system may be set back
        self._last, self._times = time.monotonic(), 0

    def is_due(self) -> bool:
        """Count a call, and return whether it should return memory."""
        self._times = _TIMES
        now = time.monotonic()
        if now - self._last < PERIOD:
            return False
        with self._lock:
            is_first = now - self._last >= PERIOD  # one of concurrent calls is enough
            self._last = now
        return is_first

    def take_time(self) -> bool:
        """Return whether memory is to be returned now."""
        with self._lock:
            is_due, self._times, self._last = self._times > 0, max(0, self._times - 1), time.monotonic()
        return is_due


_CLOCK = _Clock()


@cache
def register_arena() -> None:
    """Create the shared arena of this process, once."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({}))


def shrinking() -> ort.RunOptions:
    """Return options of a call that returns unused memory at its end."""
    options = ort.RunOptions()
    options.add_run_config_entry(_SHRINKING, "cpu:0")
    return options


def options_of_next_call() -> ort.RunOptions | None:
    """Return the options of a call: about every second, a call returns unused memory."""
    return shrinking() if _CLOCK.is_due() else None


def return_memory() -> None:
    """Return the memory of earlier calls to the system, if any ran. Takes about a millisecond."""
    if _CLOCK.take_time():
        _identity().run(None, {"x": np.zeros(1, np.float32)}, shrinking())
        _trim()


def limit_heaps() -> None:
    """Let the threads of this process share two heaps of glibc.

    By default each core brings eight, and each heap keeps fragments between its blocks: after 10,000 mixed requests of
    eight clients, a server held 12 % more than after the first 300, and with two heaps 4 % less.
    """
    with suppress(AttributeError, OSError, TypeError):  # as in `_trimmer`
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


@cache
def _trimmer() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`; `None` with another C library."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no such function; no handle of the program, as on Windows
        return None
    return trim


def _trim() -> None:
    """Return free memory inside the heaps of glibc, which grow with arrays of up to 32 MiB."""
    trim = _trimmer()
    if trim is not None:
        trim(0)


@cache
def _identity() -> ort.InferenceSession:
    register_arena()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    for key, value in SHARED.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(_IDENTITY, options, providers=["CPUExecutionProvider"])
