"""Feed mutated files to every reader for a while: each is read, or rejected by a named error, in bounded time.

Run by `make fuzz`, which is not part of the suite: `python tests/fuzz/fuzz.py --seconds 3600`. Each reader has a
separate process. Findings remain in the printed folder for a repetition: `--again FOLDER`.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from types import SimpleNamespace

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]

from readers import HEAVY, LIGHT, Reader, heavy_readers, light_readers

from adapter_export.errors import AdapterExportError
from adapter_export.onnx_backend import model_session
from adapter_export.safe_io import child

MOST_SECONDS, MOST_BYTES = 2.0, 500 * 10**6
"""Limits of one execution: processor time, and memory beyond that of the process."""

_HANGS = 60
"""The seconds after which a process is taken to hang: a loaded machine gives it little of a processor."""


def _forked(_: object, *, input: str, timeout: float, **__: object) -> subprocess.CompletedProcess[str]:
    """Do what `subprocess.run` does for a trial, in a fork of this process: in milliseconds, with the same limits."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as log:
        if not (worker := os.fork()):
            try:
                signal.alarm(math.ceil(timeout))
                os.dup2(log.fileno(), 2)
                sys.stdin, sys.stdout = io.StringIO(input), said
                child.answer()
            finally:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        if ended == -signal.SIGALRM:
            raise subprocess.TimeoutExpired("a fork", timeout)
        for file in (said, log):
            file.seek(0)
        return subprocess.CompletedProcess("a fork", ended, said.read(), log.read())


def prepare() -> None:
    """Cut the time for one run of a graph to what an execution may take, and let trials be forks."""
    model_session._MOST_SECONDS = MOST_SECONDS / 2
    vars(child)["subprocess"] = SimpleNamespace(run=_forked, TimeoutExpired=subprocess.TimeoutExpired)


def _used() -> tuple[float, int]:
    """The time of the processor and the most memory so far, in seconds and bytes, trials included."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both), 1024 * sum(one.ru_maxrss for one in both)


def outcome(reader: Reader, folder: Path) -> str | None:
    """Read a folder; return the fault, if any."""
    start, before = _used()
    wrong = None
    try:
        reader.read(folder)
    except AdapterExportError as error:
        text = str(error)
        if len(text) > 2500 or "\x1b" in text:
            wrong = "a message that is too long, or raw"
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)
        ours = next((place for place in reversed(places) if "adapter_export" in place.filename), places[-1])
        wrong = f"{type(error).__name__} at {Path(ours.filename).name}:{ours.lineno}: {str(error)[:120]}"
    end, after = _used()
    seconds, grown = end - start, after - before
    if wrong is None and seconds > MOST_SECONDS:
        wrong = f"{seconds:.1f} seconds"
    if wrong is None and grown > MOST_BYTES:
        wrong = f"{grown / 1e6:.0f} MB"
    return wrong


def _work(name: str, reader: Reader, numbers: range, seconds: float, kept: Path, pipe: Connection) -> None:
    """Change and read until the time is over; tell the number of executions, and each finding once."""
    log = (kept.parent / f"{kept.name}.{os.getpid()}.log").open("w")
    os.dup2(log.fileno(), 2)  # panics of Rust code
    faulthandler.enable(log)
    data = resource.RLIMIT_DATA
    resource.setrlimit(data, (8 * 10**9, resource.getrlimit(data)[1]))
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    end, count, seen = time.monotonic() + seconds, 0, Counter[str]()
    reader.write(scratch, None)
    reader.read(scratch)  # unchanged files are valid
    try:
        for number in numbers:
            if time.monotonic() > end:
                break
            shutil.rmtree(scratch, ignore_errors=True)
            pipe.send(("begin", number))
            reader.write(scratch, Random(f"{name} {number}"))
            wrong = outcome(reader, scratch)
            count += 1
            if wrong is not None:
                key = wrong.partition(": ")[0] if " at " in wrong else wrong.split()[-1]
                seen[key] += 1
                if seen[key] == 1:
                    shutil.copytree(scratch, kept / f"{number}", dirs_exist_ok=True)
                    pipe.send(("wrong", f"{wrong} ({kept / str(number)})"))
        pipe.send(("end", count))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        log.close()


def _watched(name: str, reader: Reader, numbers: range, seconds: float, kept: Path) -> Iterator[tuple[int, str | None]]:
    """Yield execution numbers with findings; restart a process that hangs or crashes after that execution."""
    context = multiprocessing.get_context("fork")  # the readers hold functions that cannot be pickled
    end = time.monotonic() + seconds
    while numbers and (left := end - time.monotonic()) > 0:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(name, reader, numbers, left, kept, theirs))
        worker.start()
        theirs.close()
        last, counted = numbers.start - 1, 0
        try:
            while ours.poll(_HANGS):
                kind, value = ours.recv()
                if kind == "wrong":
                    yield 0, value
                elif kind == "begin":
                    last, counted = value, value - numbers.start
                else:
                    worker.join()
                    yield value, None
                    return
            found = f"hangs at {last}"
            os.kill(worker.pid or 0, signal.SIGKILL)
        except EOFError:
            worker.join()
            found = f"ends with {worker.exitcode} at {last}"
        worker.join()
        if last < numbers.start:
            raise RuntimeError(f"`{name}` does not read what was not changed")
        folder = kept / str(last)
        reader.write(folder, Random(f"{name} {last}"))
        yield counted + 1, f"{found} ({folder})"
        numbers = numbers[counted + 1 :]


def _made(names: Collection[str]) -> Iterator[tuple[str, Reader]]:
    """Make these readers; those with torch last, since forks of a small process take less time."""
    for group, make in ((LIGHT, light_readers), (HEAVY, heavy_readers)):
        with tempfile.TemporaryDirectory() as folder:
            readers = make(Path(folder)) if set(group) & set(names) else {}
            yield from ((name, readers[name]) for name in group if name in names)


def main() -> int:
    """Run what the command line says; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all readers together")
    parser.add_argument("--executions", type=int, help="of each reader, instead of a time")
    parser.add_argument("--only", action="append", help="a reader; may be given several times")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first execution")
    parser.add_argument("--again", type=Path, help="a folder that was found, with `--only` its reader")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    chosen = [name for name in (*LIGHT, *HEAVY) if name in (given.only or [name])]
    kept, figures = Path(tempfile.mkdtemp(prefix="fuzz-found-")), {}
    numbers = range(given.seed, given.seed + (given.executions or sys.maxsize))
    seconds = math.inf if given.executions else given.seconds / len(chosen)
    prepare()
    for name, reader in _made(chosen):
        if given.again is not None:
            reader.read(given.again)
            return 0
        count, found, place = 0, list[str](), kept / name.replace(" ", "-")
        for more, wrong in _watched(name, reader, numbers, seconds, place):
            count += more
            found += [] if wrong is None else [wrong]
        figures[name] = {"executions": count, "findings": found}
        print(f"{name:16} {count:9,} executions, {len(found)} findings", *found, sep="\n  ", flush=True)
    total = sum(one["executions"] for one in figures.values())
    print(f"{total:,} executions of {len(chosen)} readers; what was found is in {kept}")
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2))
    return int(any(one["findings"] for one in figures.values()))


if __name__ == "__main__":
    raise SystemExit(main())
