"""A server under 16 clients, beside its session in process, KServe, a process for each adapter, and AdapterHub.

    python benchmarks/serving.py                                # eight adapters of MiniLM, 16 clients
    python benchmarks/serving.py --write                        # and write the table into docs/
    python benchmarks/serving.py --adapters 32 --rounds 10 --without adapterhub
    python benchmarks/serving.py --without adapterhub each      # the decision 0027: `serve` or KServe's ModelServer

Each client asks for one text after the other, each for another adapter. Ways take turns, and each ratio is of two of
one round. One thread computes in every way; the server's own work, and the clients', has other cores if there are any.
Where others use the machine, many processes get a larger part of it: then look at the processor time of a request.
AdapterHub runs in the environment of `make bench`, KServe in that of `make setup`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from kit.adapters import random_houlsby
from kit.machine import description, load_average, warn_if_busy
from kit.part import tell
from kit.tables import Table, spread

import adapter_export as ae
from adapter_export.format.adapter_files import write_adapter
from adapter_export.runtime import Bundle
from adapter_export.safe_io.output import Output

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
ALTERNATIVES = HERE.parent / ".venv" / "alternatives" / "bin" / "python"
KSERVE_PYTHON = HERE.parent / ".venv" / "kserve" / "bin" / "python"
SESSION, SERVE, EACH, HUB = "the session, in process", "`serve`", "a process for each adapter", "AdapterHub in FastAPI"
PROTOCOL, KSERVE = "`serve`, Open Inference Protocol", "KServe's ModelServer, Open Inference Protocol"
TEXTS = [
    f"How far is the {thing} from the {place}, and who was the first to {verb} it?"
    for thing in ("moon", "sea", "capital", "old bridge")
    for place in ("earth", "station", "border")
    for verb in ("measure", "see", "walk")
]

AskedBy = Callable[[str, str], tuple[str, object]]
"""Returns the path and the body that ask a model about a text."""


@dataclass
class Way:
    """A contestant that answers requests.

    Attributes:
        ask: answers a number of requests, and returns the seconds of each.
        processes: its processes.
        rates: requests per second, by round.
        late: seconds of single requests.
        costs: processor seconds per request in all processes, by round.
        memory: memory of all its processes in bytes, counting shared pages once.
    """

    ask: Callable[[int], list[float]]
    processes: Sequence[psutil.Process]
    rates: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    memory: float = 0.0


def main() -> None:
    """Measure, print, and write if that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=480, help="of one round")
    parser.add_argument("--python", type=Path, default=ALTERNATIVES, help="the one that has AdapterHub")
    parser.add_argument("--without", nargs="*", default=[], choices=["adapterhub", "each", "kserve"])
    parser.add_argument("--bundles", type=Path, help="folder that keeps the built bundles")
    parser.add_argument("--write", action="store_true", help="replace the table in docs/")
    given = parser.parse_args()
    load = load_average()
    warn_if_busy(load)
    with ExitStack() as stack:
        folder = given.bundles or Path(stack.enter_context(TemporaryDirectory(prefix="serving-")))
        names = [f"a{number}" for number in range(given.adapters)]
        _prepare(folder, names)
        ways = {SESSION: _in_process(folder / "bundle", names, given.clients)}
        one = [(folder / "bundle", names)]
        ways[SERVE] = stack.enter_context(_served(one, given.clients, _plain_call))
        if "kserve" not in given.without:
            ways[PROTOCOL] = stack.enter_context(_served(one, given.clients, _protocol_call))
            ways[KSERVE] = stack.enter_context(_kserve(folder, names, given.clients))
        if "each" not in given.without:
            each = [(folder / name, [name]) for name in names]
            ways[EACH] = stack.enter_context(_served(each, given.clients, _plain_call))
        if "adapterhub" not in given.without:
            ways[HUB] = stack.enter_context(_adapterhub(folder, names, given))
        _measure(ways, given.rounds, given.requests)
    table = _table(ways, given)
    machine = description(load, "cpu")
    print(machine, table.markdown(), sep="\n\n")
    if given.write:
        page = DOCS / "project" / "serving-load.md"
        begin, end = "<!-- load: begin -->", "<!-- load: end -->"
        text = re.sub(
            f"(?s){begin}.*{end}", lambda _: f"{begin}\n{machine}\n\n{table.markdown()}\n{end}", page.read_text("utf-8")
        )
        with Output(page, force=True).file() as temporary:
            temporary.write_text(text, "utf-8")
        tell("draw the chart with: python docs/_site/load_chart.py")


def _prepare(folder: Path, names: Sequence[str]) -> None:
    """Build a bundle of all adapters, and one of each."""
    if (folder / "bundle").exists():
        return
    sys.path.insert(0, str(HERE.parent / "examples"))
    import demo_data

    tell("building bundles")
    folder.mkdir(exist_ok=True)
    (folder / "base").symlink_to(demo_data.base_folder().resolve())
    base = ae.capture(folder / "base", folder / "model.pt")
    exported = base.exported(folder)
    for number, name in enumerate(names):
        write_adapter(random_houlsby(name, exported, 64, number), folder / "adapters" / name)
    plain = {"without_base_head": True}
    folders = [folder / "adapters" / name for name in names]
    ae.build(base, folders, folder / "bundle", variants=["slots", "bank"], **plain)
    for path in folders:
        ae.build(base, [path], folder / path.name, variants=["slots"], **plain)


def _in_process(path: Path, names: Sequence[str], clients: int) -> Way:
    """Measure the maximum throughput of a session: one text per client in a call, tokenized and answered."""
    bundle = Bundle.open(path)
    texts, session = itertools.cycle(TEXTS), bundle.session(threads=1)
    reader, adapters = bundle.texts(session), itertools.cycle(names)

    def ask(requests: int) -> list[float]:
        late = []
        for _ in range(requests // clients):
            began = time.perf_counter()
            found = reader.answer(
                [next(texts) for _ in range(clients)], adapters=[next(adapters) for _ in range(clients)]
            )
            for one in found:
                json.dumps(one.document())
            late += [time.perf_counter() - began] * clients
        return late

    way = Way(ask, [psutil.Process()])
    way.ask(2 * clients)
    way.memory = _memory(way.processes)
    return way


def _plain_call(name: str, text: str) -> tuple[str, object]:
    return "/answer", {"model": name, "text": text}


def _protocol_call(name: str, text: str) -> tuple[str, object]:
    texts = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    return f"/v2/models/{name}/infer", {"inputs": [texts], "outputs": [{"name": "answer"}]}


@contextmanager
def _served(bundles: Sequence[tuple[Path, Sequence[str]]], clients: int, call: AskedBy) -> Iterator[Way]:
    """A server for each bundle; each request goes to the one that has its adapter."""
    with ExitStack() as stack:
        places, processes = {}, []
        for path, names in bundles:
            options = [f"bundle={path.resolve()}", "--port=0", "--drain=0", "--quiet"]
            process, port = stack.enter_context(_started([sys.executable, "-m", "adapter_export", "serve", *options]))
            processes.append(psutil.Process(process.pid))
            places |= dict.fromkeys(names, port)
        way = Way(_asking(places, clients, call), processes)
        way.ask(2 * clients)
        way.memory = _memory(processes)
        yield way


@contextmanager
def _kserve(folder: Path, names: Sequence[str], clients: int) -> Iterator[Way]:
    """The layout `kserve`: each adapter is a model of KServe's ModelServer, and all share one session."""
    if not KSERVE_PYTHON.exists():
        sys.exit(f"error: KServe is not there: {KSERVE_PYTHON} is missing. `make setup` installs it.")
    if not (folder / "kserve").exists():
        ae.ship(folder / "bundle", folder / "kserve", layout="kserve", name="bundle")
        stage = HERE.parent / "packages" / "runtime" / "stage.py"
        subprocess.run([sys.executable, stage, folder / "runtime"], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [KSERVE_PYTHON, folder / "kserve" / "kserve_server.py", "--model_dir", folder / "bundle"]
    options = ["--http_port", str(port), "--enable_grpc", "false"]
    around = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    around["PYTHONPATH"] = str((folder / "runtime").resolve())
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*words, *options], env=around, **pipes) as process:
        try:
            while process.poll() is None:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready"):
                        break
                except OSError:
                    time.sleep(0.2)
            way = Way(_asking(dict.fromkeys(names, port), clients, _protocol_call), [psutil.Process(process.pid)])
            way.ask(2 * clients)
            way.memory = _memory(way.processes)
            yield way
        finally:
            process.terminate()


@contextmanager
def _adapterhub(folder: Path, names: Sequence[str], given: argparse.Namespace) -> Iterator[Way]:
    """AdapterHub's own model behind FastAPI: it has one active adapter, so requests wait for each other."""
    if not given.python.exists():
        sys.exit(f"error: AdapterHub is not there: {given.python} is missing. `make bench` installs it.")
    words = [str(given.python), "-m", "kit.adapterhub_service", str((folder / "base").resolve()), *names]
    with _started(words) as (process, port):
        ask = _asking(dict.fromkeys(names, port), given.clients, lambda name, text: ("/", {"a": name, "t": text}))
        way = Way(ask, [psutil.Process(process.pid)])
        way.ask(2 * given.clients)
        way.memory = _memory(way.processes)
        yield way


@contextmanager
def _started(words: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a server, and return as soon as it prints its address."""
    around = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, text=True, env=around, cwd=HERE, **pipes) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.terminate()


def _asking(places: dict[str, int], clients: int, call: AskedBy) -> Callable[[int], list[float]]:
    """Clients that ask one request after the other, each on connections that stay open."""
    names, texts = itertools.cycle(places), itertools.cycle(TEXTS)

    async def client(left: Iterator[int], late: list[float]) -> None:
        streams: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        for _ in left:
            name = next(names)
            path, document = call(name, next(texts))
            began = time.perf_counter()
            port = places[name]
            if port not in streams:
                streams[port] = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = streams[port]
            body = json.dumps(document).encode()
            kind = f"content-type: application/json\r\ncontent-length: {len(body)}"
            writer.write(f"POST {path} HTTP/1.1\r\nhost: a\r\n{kind}\r\n\r\n".encode() + body)
            head = await reader.readuntil(b"\r\n\r\n")
            size = re.search(rb"content-length: (\d+)", head)
            answer = await reader.readexactly(int(size[1] if size else 0))
            assert head.startswith(b"HTTP/1.1 200"), head + answer
            late.append(time.perf_counter() - began)
        for _, writer in streams.values():
            writer.close()

    async def all_clients(requests: int) -> list[float]:
        late: list[float] = []
        left = iter(range(requests))
        await asyncio.gather(*(client(left, late) for _ in range(clients)))
        return late

    return lambda requests: asyncio.run(all_clients(requests))


def _memory(processes: Sequence[psutil.Process]) -> float:
    return float(sum(process.memory_full_info().pss for process in processes))


def _processor_seconds(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def _measure(ways: dict[str, Way], rounds: int, requests: int) -> None:
    names = list(ways)
    for turn in range(rounds):
        tell(f"round {turn + 1} of {rounds}")
        for place in range(len(names)):
            way = ways[names[(place + turn) % len(names)]]
            began, cost = time.perf_counter(), _processor_seconds(way.processes)
            late = way.ask(requests)
            way.rates.append(len(late) / (time.perf_counter() - began))
            way.costs.append((_processor_seconds(way.processes) - cost) / len(late))
            way.late += late


def _table(ways: dict[str, Way], given: argparse.Namespace) -> Table:
    rows = []
    for name, way in ways.items():
        ratios = [own / other for own, other in zip(way.rates, ways[SESSION].rates, strict=True)]
        late = statistics.quantiles(way.late, n=100, method="inclusive")
        rows.append(
            [
                name,
                spread(way.rates, 0),
                spread(ratios, 2),
                spread([1000 * cost for cost in way.costs], 1),
                round(1000 * late[49]),
                round(1000 * late[94]),
                f"{way.memory / 1e6:,.0f}",
            ]
        )
    columns = ["", "requests per second", "over the session", "processor time of a request, ms"]
    columns += ["median, ms", "95 %, ms", "memory, MB"]
    title = f"{given.clients} clients, {given.adapters} adapters"
    return Table(title, columns, rows, "A text of 20 tokens each, each for another adapter; one thread computes.")


if __name__ == "__main__":
    main()
