"""Clients of a server whose bundle is exchanged and whose alias turns: which answers may come, and which do."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from adapter_export.runtime import Bundle
from adapter_export.safe_io.output import Output

TEXTS = ("who wrote it ?", "a good film , and the book was not dull .", "moon", "the film and the book")
TURNS = ("tone", "mood")
LABELS = (["a", "b"], ["left", "right"])
"""The names of classes in the two versions of the bundle, by which an answer tells of which one it is."""


def two_versions(film: Path, folder: Path) -> tuple[Path, Path]:
    """A bundle, and one that names the classes of its adapters otherwise."""
    other = shutil.copytree(film, folder / "other")
    document = json.loads((film / "manifest.json").read_text())
    del document["checksum"]
    for record in document["adapters"]:
        if record["name"] in TURNS:
            record["task"]["labels"] = LABELS[1]
    (other / "manifest.json").write_text(json.dumps(document))
    return film, other


@dataclass
class Steps:
    """Changes between two states: how many have begun, and how many have been answered."""

    begun: int = 0
    done: int = 0

    def possible(self, done: int) -> set[int]:
        """Return the possible states of an answer to a request sent after `done` changes."""
        return {step % 2 for step in range(done, self.begun + 1)}


@dataclass
class Traffic:
    """A server's address, the folder of its bundle, and the two versions that it has in turns."""

    address: httpx2.URL
    place: Path
    versions: tuple[Path, Path]
    counts: Counter[str] = field(default_factory=Counter)
    deployed: Steps = field(default_factory=Steps)
    turned: Steps = field(default_factory=Steps)
    ending: bool = False

    def __post_init__(self) -> None:
        readers = [Bundle.open(path).texts() for path in self.versions]
        self.expected = {
            (version, name, text): reader.answer([text], name)[0].document()["probabilities"]
            for version, reader in enumerate(readers)
            for name in TURNS
            for text in TEXTS
        }

    async def run(self, requests: int, clients: int, rows: int, pause: float) -> Counter[str]:
        """Answer requests of a given number of rows while a deployer and an operator work."""
        await self._turn()
        left = iter(range(requests))
        others = [asyncio.create_task(self._again(work, pause)) for work in (self._deploy, self._turn)]
        try:
            await asyncio.gather(*(self._client(left, rows) for _ in range(clients)))
        finally:
            self.ending = True
            await asyncio.gather(*others)
        self.counts |= Counter(deployed=self.deployed.done, turned=self.turned.done)
        return self.counts

    async def _client(self, left: Iterator[int], rows: int) -> None:
        streams = await self._connect()
        for number in left:
            texts = [TEXTS[(number + row) % len(TEXTS)] for row in range(rows)]
            states = self.deployed.done, self.turned.done
            try:
                status, answer = await self._ask(streams, "POST", "/answer", {"model": "best", "texts": texts})
            except (OSError, asyncio.IncompleteReadError):
                self.counts["lost"] += rows
                await _close(streams)
                streams = await self._connect()
                continue
            if status != 200:
                self.counts[f"lost: {status} {answer}"] += rows
                continue
            may = self.deployed.possible(states[0]), self.turned.possible(states[1])
            for text, row in zip(texts, answer["rows"], strict=True):
                self.counts["right" if self._is_right(text, row, *may) else "wrong"] += 1
        await _close(streams)

    def _is_right(self, text: str, answer: dict, versions: set[int], turns: set[int]) -> bool:
        labels = list(answer["probabilities"])
        version = LABELS.index(labels) if labels in LABELS else -1
        if version not in versions or answer["adapter"] not in {TURNS[turn] for turn in turns}:
            return False
        expected = self.expected[version, answer["adapter"], text]
        return all(abs(answer["probabilities"][label] - expected[label]) < 1e-5 for label in labels)

    async def _again(self, work: Callable[[], Awaitable[None]], pause: float) -> None:
        while not self.ending:
            await work()
            await asyncio.sleep(pause)  # type: ignore[operator]

    async def _deploy(self) -> None:
        """Exchange the folder, and have it read again."""
        self.deployed.begun += 1
        version = self.versions[self.deployed.begun % 2]
        with Output(self.place, force=True).folder() as temporary:
            await asyncio.to_thread(shutil.copytree, version, temporary, dirs_exist_ok=True)
        await self._change("POST", f"/v2/repository/models/{self.place.name}/load", None)
        self.deployed.done += 1

    async def _turn(self) -> None:
        """Let the alias lead to the other adapter."""
        if self.turned.begun or self.counts["aliased"]:
            self.turned.begun += 1
        await self._change("PUT", "/admin/routes/best", {"alias": TURNS[self.turned.begun % 2]})
        self.turned.done, self.counts["aliased"] = self.turned.begun, 1

    async def _change(self, method: str, path: str, document: object) -> None:
        streams = await self._connect()
        status, answer = await self._ask(streams, method, path, document)
        await _close(streams)
        assert status == 200, answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.address.host, self.address.port)

    async def _ask(
        self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], method: str, path: str, document: object
    ) -> tuple[int, dict]:
        """A request on a connection that stays open; a client written for speed, for it asks a million times."""
        reader, writer = streams
        body = b"" if document is None else json.dumps(document).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answered = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", answered)
        data = await reader.readexactly(int(size[1]) if size else 0)
        return int(answered.split(maxsplit=2)[1]), json.loads(data)


async def _close(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    streams[1].close()
    with suppress(OSError):
        await streams[1].wait_closed()
