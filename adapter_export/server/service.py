"""From rows with models to answers: texts become inputs, rows of all requests go through sessions together."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from starlette.datastructures import State

from adapter_export.errors import InputError, RequestError
from adapter_export.runtime import Request
from adapter_export.runtime.answers import Head
from adapter_export.runtime.text_reader import Asked, ReadText
from adapter_export.server.calls import Call
from adapter_export.server.limits import RefusedError
from adapter_export.server.models import PIN, Models, Served, Target, listed
from adapter_export.server.resolver import Resolver
from adapter_export.server.routes import Routes
from adapter_export.server.row_answers import Answer, Arrays, row_answer, text_answer, text_requests
from adapter_export.server.telemetry import Metrics, log

_MOST_SHADOWS = 64
"""How many calls of shadows may wait; more are dropped."""


@dataclass(frozen=True)
class Row:
    """A row to compute: what answers it, a text, or the inputs of one row, [1, …], and the strength of its adapter."""

    target: Target
    text: Asked | None = None
    inputs: Mapping[str, np.ndarray] | None = None
    strength: float = 1.0


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
        resolver: finds adapters that are not loaded.
        metrics: hear of shadows.

    Attributes:
        routes: names that lead to models.
    """

    def __init__(self, models: Models, resolver: Resolver, metrics: Metrics) -> None:
        self.models, self._resolver, self._metrics = models, resolver, metrics
        self.routes = Routes()
        self._resolving = asyncio.Lock()
        self._shadows = set[asyncio.Task[None]]()

    async def target(self, name: str, key: str, state: State | None = None) -> Target:
        """Return what answers for the name of a model or of a route; RefusedError (404) if nothing does.

        Args:
            name: of the model.
            key: of the request, by which a route with shares decides.
            state: of the request: is told the name of the `model`, of the `adapter` that answers, and its `shadows`.
        """
        chosen, shadow = self.routes.choose(name, key)
        found = self.models.find(chosen) or await self.resolved(chosen)
        if found is None:
            known = listed({**self.models.names(), **self.routes.table})
            what = (
                f"there is no model `{name}`"
                if chosen == name
                else f"route `{name}` leads to `{chosen}`, which is gone"
            )
            raise RefusedError(404, f"{what}; expected one of {known}")
        if state is not None:
            state.model, state.adapter = name, found.name
            if shadow is not None:
                state.shadows = {**getattr(state, "shadows", {}), found: (name, shadow)}
        return found

    async def resolved(self, name: str) -> Target | None:
        """Return the model of a name that a resolver finds, loaded now; errors as of `Resolver.find`."""
        async with self._resolving:
            found = self.models.find(name.partition(PIN)[0])
            if found is None:
                extra = await asyncio.to_thread(self._resolver.find, name, self.models.served)
                if extra is None:
                    return None
                await self.models.load(replace(extra, found=True))
        return self.models.find(name)

    def adapters(self) -> dict[str, Any]:
        """Return the adapters with their tasks, as JSON; those of several bundles by their names as models."""
        found = {}
        for name, target in self.models.names().items():
            if target.adapter is not None:
                task = target.served.session.task(target.adapter)
                found[name] = {"task": None if task is None else task.document()}
        return found

    async def answer(self, call: Call, key: str, state: State) -> list[Answer]:
        """Return an answer to each row of a call, by the task of its adapter; the base's own head answers for a base.

        Raises:
            RequestError, RefusedError: it cannot be answered.
        """
        computed = await self.compute(await self._rows(call, key, state, own_head=True), state)
        return [one.answer() for one in computed]

    async def run(self, call: Call, key: str, state: State) -> list[dict[str, Any]]:
        """Return the outputs of each row of a call; errors as of `answer`."""
        computed = await self.compute(await self._rows(call, key, state, own_head=False), state)
        found: list[dict[str, Any]] = []
        for one in computed:
            for outputs in one.outputs:
                for name, array in outputs.items():
                    if not np.isfinite(array).all():
                        raise RequestError("an output is NaN or infinite, which JSON cannot say", where=f"`{name}`")
                found.append({name: array[0].tolist() for name, array in outputs.items()})
        return found

    async def compute(self, rows: Sequence[Row], state: State) -> list[Computed]:
        """Compute rows, those of one bundle together; then those of shadows, for which nobody waits.

        Raises:
            RequestError: one of them does not fit.
            RefusedError: too much waits.
        """
        state.rows = len(rows)
        computed = await self._computed(rows)
        for target, (route, shadow) in getattr(state, "shadows", {}).items():
            own = [at for at, row in enumerate(rows) if row.target == target]
            if len(self._shadows) >= _MOST_SHADOWS or not own:
                self._metrics.shadow(route, "dropped", len(own))
                continue
            task = asyncio.create_task(
                self._shadow(route, shadow, [rows[at] for at in own], [computed[at] for at in own])
            )
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)
        return computed

    async def _shadow(self, route: str, model: str, rows: Sequence[Row], computed: Sequence[Computed]) -> None:
        """Compute rows by the shadow of a route, and compare; whatever goes wrong is counted, and nobody's error."""
        try:
            while any(served.collector and served.collector.waiting for served in self.models.served):
                await asyncio.sleep(0.01)  # others, who wait for their answers, come first
            target = self.models.find(model) or await self.resolved(model)
            if target is None:
                raise RequestError("the shadow is gone", found=f"`{model}`")
            found = await self._computed([replace(row, target=target) for row in rows])
            pairs = [(one.answer(), other.answer()) for one, other in zip(computed, found, strict=True)]
        except (InputError, RefusedError) as error:
            self._metrics.shadow(route, "failed", len(rows))
            log("shadow", level=logging.WARNING, route=route, model=model, outcome="failed", reason=str(error))
            return
        for answer, other in pairs:
            outcome = "same" if same_answers(answer, other) else "different"
            self._metrics.shadow(route, outcome)
            if outcome == "different":
                log("shadow", route=route, model=model, outcome=outcome, answer=_short(answer), other=_short(other))

    async def _computed(self, rows: Sequence[Row]) -> list[Computed]:
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
        heads = [served.session.head(row.target.adapter if one is None else one.adapter) for one, row in named]
        requests = [_requests(served, one, row) for one, row in named]
        outputs = iter(await served.collector.answer([each for own in requests for each in own]))
        return [
            Computed(row.target, head, [next(outputs) for _ in own], one, _mask(row))
            for (one, row), head, own in zip(named, heads, requests, strict=True)
        ]

    async def _rows(self, call: Call, key: str, state: State, *, own_head: bool) -> list[Row]:
        asked = call.asked()
        count = len(next(iter((call.inputs or {}).values()), ())) if asked is None else len(asked)
        names = call.names(count)
        targets = {name: await self._called(call, name, key, state) for name in dict.fromkeys(names)}
        strengths = call.strengths(count)
        if asked is not None:
            given = zip(names, asked, strengths, strict=True)
            return [Row(targets[name], text, strength=strength) for name, text, strength in given]
        if own_head:
            targets = {name: _with_own_head(target) for name, target in targets.items()}
        dtypes = {
            record.name: record.dtype for target in targets.values() for record in target.served.bundle.manifest.inputs
        }
        inputs = call.arrays(dtypes)  # here, since models must not be unloaded before they are held
        every = zip(names, inputs, strengths, strict=True)
        return [Row(targets[name], inputs=own, strength=strength) for name, own, strength in every]

    async def _called(self, call: Call, name: str | None, key: str, state: State) -> Target:
        """Return what answers for a model, or, as in the service in C++, for an adapter, or for none."""
        if name is None:
            found = Target(self.models.only(), None)
            state.model = state.adapter = found.name
            return found
        if call.model is not None:
            return await self.target(name, key, state)
        try:
            return await self.target(name, key, state)
        except RefusedError:
            self.models.only().session.task(name)  # says what is loaded, as the others do
            raise


_FACTS = ("label", "labels", "choice", "answer", "start", "end", "score", "probability")
"""What of an answer is logged where a shadow's differs."""


def same_answers(one: object, other: object) -> bool:
    """Return whether two answers say the same: labels and places are equal, numbers close; shares may differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [set(each) - {"adapter", "probability", "probabilities"} for each in (one, other)]
        return keys[0] == keys[1] and all(same_answers(one[key], other[key]) for key in keys[0])
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_answers, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3)
    return one == other


def _short(answer: Answer) -> dict[str, Any]:
    return {fact: answer[fact] for fact in ("adapter", *_FACTS) if fact in answer}


def _with_own_head(target: Target) -> Target:
    return Target(target.served, target.served.bundle.manifest.head) if target.adapter is None else target


def _read(served: Served, rows: Sequence[Row]) -> list[ReadText]:
    if served.reader is None:
        raise RequestError("this bundle has no tokenizer", fix="send `inputs`")
    texts = [row.text for row in rows if row.text is not None]
    return served.reader.read(texts, adapters=[row.target.adapter for row in rows])


def _requests(served: Served, read: ReadText | None, row: Row) -> list[Request]:
    if read is not None and served.reader is not None:
        return text_requests(served.reader, read, row.strength)
    return [Request(row.inputs or {}, row.target.adapter, row.strength)]


def _mask(row: Row) -> np.ndarray | None:
    mask = None if row.inputs is None else row.inputs.get("attention_mask")
    return None if mask is None else mask[0]
