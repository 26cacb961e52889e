"""Processor time and memory of a command, which is killed at a limit of time or memory."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_INTERVAL_S = 0.02
"""Time between two readings of the memory."""

_LONGEST_LINE = 200


@dataclass
class Peak:
    """The most memory of processes in bytes: all that is resident, and its parts."""

    resident: int = 0
    anonymous: int = 0
    of_files: int = 0

    def read(self, *processes: int) -> None:
        """Read the memory of processes, whose parts are added; a process that has ended changes nothing."""
        fields = [_status(process) for process in processes]
        largest = max((field.get("VmHWM", 0) for field in fields), default=0)
        self.resident = max(self.resident, largest, sum(field.get("VmRSS", 0) for field in fields))
        self.anonymous = max(self.anonymous, sum(field.get("RssAnon", 0) for field in fields))
        of_files = sum(field.get("RssFile", 0) + field.get("RssShmem", 0) for field in fields)
        self.of_files = max(self.of_files, of_files)


def _status(process: int) -> dict[str, int]:
    """Return the sizes in `/proc/PID/status` in bytes; nothing for a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key: int(rest.split()[0]) * 1024 for key, _, rest in pairs if rest.endswith("kB")}


def family(process: int) -> Iterator[int]:
    """Yield a process and all processes that it started, as far as they run."""
    yield process
    try:
        children = [path.read_text(encoding="ascii") for path in Path(f"/proc/{process}/task").glob("*/children")]
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in " ".join(children).split():
        yield from family(int(child))


@dataclass(frozen=True)
class Limits:
    """Limits at which a command is killed.

    Attributes:
        seconds: wall-clock time.
        bytes: anonymous memory of the command and the processes that it started.
    """

    seconds: float
    bytes: float


@dataclass(frozen=True)
class Spent:
    """Costs of a command.

    Attributes:
        processor: seconds of all processors, user and system, of the command and the processes it waited for.
        wall: seconds on the clock.
        peak: its most memory, together with the processes that it started.
        failure: the limit that it exceeded or its exit status; `None` if it succeeded.
        printed: the last line of its standard output.
        last_line: the last line that it wrote to standard error, or else to standard output.
    """

    processor: float = 0.0
    wall: float = 0.0
    peak: Peak = field(default_factory=Peak)
    failure: str | None = None
    printed: str = ""
    last_line: str = ""


def watch(command: Sequence[str], limits: Limits, log: Path, environment: Mapping[str, str]) -> Spent:
    """Run a command and measure it; a failure is part of the result.

    Args:
        command: program and arguments.
        limits: the command and the processes that it started are killed beyond.
        log: path of the output; `.out` and `.err` are appended.
        environment: variables added to those of this process.
    """
    written, errors = (log.with_name(f"{log.name}{ending}") for ending in (".out", ".err"))
    before, began, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), Peak()
    with written.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env={**os.environ, **environment}, start_new_session=True
        )
        try:
            exceeded = _exceeded(process, peak, limits, began)
        finally:
            _kill(process)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed, complaint = map(_last_line, (written, errors))
    return Spent(
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        time.perf_counter() - began,
        peak,
        exceeded or _failure(process.returncode),
        printed,
        complaint or printed,
    )


def _exceeded(process: subprocess.Popen[bytes], peak: Peak, limits: Limits, began: float) -> str | None:
    """Wait for the end of a process, and return the limit that it exceeded before."""
    while process.poll() is None:
        peak.read(*family(process.pid))
        if peak.anonymous > limits.bytes:
            return f"more than {limits.bytes / 1e9:,.3g} GB of memory"
        if time.perf_counter() - began > limits.seconds:
            return f"more than {limits.seconds:,.0f} s"
        time.sleep(_INTERVAL_S)
    return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its group, unless it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failure(status: int) -> str | None:
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"exit status {status}" if status else None


def _last_line(path: Path) -> str:
    """Return the last line with words, the last state of a progress bar included."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line[:_LONGEST_LINE] for line in reversed(lines) if line), "")
