"""From rows with models to answers: texts become inputs, rows of all requests go through sessions together."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.runtime import Request
from adapter_export.runtime.texts import Asked, ReadText
from adapter_export.server.answers import Answer, Arrays, Head, head_of, row_answer, text_answer, text_requests
from adapter_export.server.calls import Call
from adapter_export.server.limits import RefusedError
from adapter_export.server.models import Models, Served, Target, listed


@dataclass(frozen=True)
class Row:
    """A row to compute: what answers it, and a text, or the inputs of one row, [1, …]."""

    target: Target
    text: Asked | None = None
    inputs: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Computed:
    """A row that was computed: the outputs of each of its parts, [1, …]."""

    target: Target
    head: Head
    outputs: Sequence[Arrays]
    read: ReadText | None = None
    mask: np.ndarray | None = None

    def answer(self) -> Answer:
        """Return what it says, as JSON; RequestError if that is NaN or infinite."""
        served = self.target.served
        if self.read is not None and served.reader is not None:
            return text_answer(served.reader, self.head, self.read, self.outputs)
        own = {name: array[0] for name, array in self.outputs[0].items()}
        return row_answer(served.session, self.head, own, self.mask)


class Service:
    """Answers calls by the models of a server.

    Args:
        models: that answer.
    """

    def __init__(self, models: Models) -> None:
        self.models = models

    async def target(self, name: str, key: str) -> Target:
        """Return what answers for a model's name; RefusedError (404) if nothing does.

        Args:
            name: of the model.
            key: of the request, by which a route that shares calls out decides.
        """
        found = self.models.find(name)
        if found is None:
            raise RefusedError(404, f"there is no model `{name}`; expected one of {listed(self.models.names())}")
        return found

    async def answer(self, call: Call, key: str) -> list[Answer]:
        """Return an answer to each row of a call, by the task of its adapter; the base's own head answers for a base.

        Raises:
            RequestError, RefusedError: it cannot be answered.
        """
        rows = await self._rows(call, key, own_head=True)
        computed = await self.compute(rows)
        return [one.answer() for one in computed]

    async def run(self, call: Call, key: str) -> list[dict[str, Any]]:
        """Return the outputs of each row of a call; errors as of `answer`."""
        computed = await self.compute(await self._rows(call, key, own_head=False))
        found: list[dict[str, Any]] = []
        for one in computed:
            for outputs in one.outputs:
                for name, array in outputs.items():
                    if not np.isfinite(array).all():
                        raise RequestError("an output is NaN or infinite, which JSON cannot say", where=f"`{name}`")
                found.append({name: array[0].tolist() for name, array in outputs.items()})
        return found

    async def compute(self, rows: Sequence[Row]) -> list[Computed]:
        """Compute rows, those of one bundle together.

        Raises:
            RequestError: one of them does not fit.
            RefusedError: too much waits.
        """
        groups: dict[Served, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(row.target.served, []).append(index)
        with ExitStack() as stack:
            for target in dict.fromkeys(row.target for row in rows):
                stack.enter_context(target.held())
            parts = [self._compute(served, [rows[at] for at in places]) for served, places in groups.items()]
            found = await asyncio.gather(*parts)
        results: list[Computed | None] = [None] * len(rows)
        for places, part in zip(groups.values(), found, strict=True):
            for at, one in zip(places, part, strict=True):
                results[at] = one
        return [one for one in results if one is not None]

    async def _compute(self, served: Served, rows: Sequence[Row]) -> list[Computed]:
        assert served.collector is not None
        texts = [row for row in rows if row.text is not None]
        read = iter(await asyncio.to_thread(_read, served, texts)) if texts else iter(())
        named = [(next(read), row) if row.text is not None else (None, row) for row in rows]
        heads = [head_of(served.session, row.target.adapter if one is None else one.adapter) for one, row in named]
        requests = [_requests(served, one, row) for one, row in named]
        outputs = iter(await served.collector.answer([each for own in requests for each in own]))
        return [
            Computed(row.target, head, [next(outputs) for _ in own], one, _mask(row))
            for (one, row), head, own in zip(named, heads, requests, strict=True)
        ]

    async def _rows(self, call: Call, key: str, *, own_head: bool) -> list[Row]:
        asked = call.asked()
        count = len(next(iter((call.inputs or {}).values()), ())) if asked is None else len(asked)
        names = call.names(count)
        targets = {name: await self._called(call, name, key) for name in dict.fromkeys(names)}
        if asked is not None:
            return [Row(targets[name], text) for name, text in zip(names, asked, strict=True)]
        if own_head:
            targets = {name: _with_own_head(target) for name, target in targets.items()}
        dtypes = {
            record.name: record.dtype
            for target in targets.values()
            for record in target.served.bundle.manifest.inputs
        }
        inputs = await asyncio.to_thread(call.arrays, dtypes)
        return [Row(targets[name], inputs=own) for name, own in zip(names, inputs, strict=True)]

    async def _called(self, call: Call, name: str | None, key: str) -> Target:
        """Return what answers for a model, or, as in the services in other languages, for an adapter, or for none."""
        if name is None:
            return Target(self.models.only(), None)
        if call.model is not None:
            return await self.target(name, key)
        try:
            return await self.target(name, key)
        except RefusedError:
            served = self.models.only()
            served.session.task(name)  # says what is loaded
            return Target(served, name)


def key_of(given: str | None, route: str) -> float:
    """Return a number from 0 to 1, always the same for a request of this id and a route."""
    digest = hashlib.sha256(f"{route}\0{given}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _with_own_head(target: Target) -> Target:
    return Target(target.served, target.served.bundle.manifest.head) if target.adapter is None else target


def _read(served: Served, rows: Sequence[Row]) -> list[ReadText]:
    if served.reader is None:
        raise RequestError("this bundle has no tokenizer", fix="send `inputs`")
    texts = [row.text for row in rows if row.text is not None]
    return served.reader.read(texts, adapters=[row.target.adapter for row in rows])


def _requests(served: Served, read: ReadText | None, row: Row) -> list[Request]:
    if read is not None and served.reader is not None:
        return text_requests(served.reader, read)
    return [Request(row.inputs or {}, row.target.adapter)]


def _mask(row: Row) -> np.ndarray | None:
    mask = None if row.inputs is None else row.inputs.get("attention_mask")
    return None if mask is None else mask[0]
