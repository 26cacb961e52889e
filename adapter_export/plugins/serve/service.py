"""Compute rows and texts by model: routing, tokenization, batching across requests, and shadows."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.datastructures import State

from adapter_export.decoding import Decoding
from adapter_export.errors import InputError, RequestError
from adapter_export.format.axes import length, names
from adapter_export.format.manifest import Axis, Manifest
from adapter_export.graph.tasks.asked import BASE
from adapter_export.plugins.serve.calls import Call
from adapter_export.plugins.serve.limits import RefusedError
from adapter_export.plugins.serve.models import PIN, LoadedBundle, Models, Target, listed
from adapter_export.plugins.serve.resolver import Resolver
from adapter_export.plugins.serve.routes import Routes
from adapter_export.plugins.serve.server_settings import Limits
from adapter_export.plugins.serve.telemetry import Metrics, log
from adapter_export.plugins.serve.text_queue import TextJob
from adapter_export.runtime.answerer import AnsweredRow, Answerer, Reading, ReadRow, Row
from adapter_export.runtime.generation.text_writer import Prompt, TextWriter
from adapter_export.runtime.generation.transcriber import SpeechOptions, Transcript
from adapter_export.tables import number_of
from adapter_export.text import Pair, SidedText

_MOST_SHADOWS = 64
"""Maximum queued calls of shadows; more are dropped."""

_SHORT = 2**12
"""Characters of a request that are tokenized in the event loop, in about a millisecond."""

_PART = 2**18
"""Characters of texts that are tokenized at a time; each takes about 200 bytes until its text is truncated."""

_USUAL = Reading()

Answer = dict[str, Any]
"""The answer to a row as JSON; docs/reference/format.md specifies it."""


@dataclass(frozen=True)
class TargetRow:
    """A row of a request with its model; `row.adapter` is the adapter of the target."""

    target: Target
    row: Row

    def by(self, target: Target) -> TargetRow:
        """Return the row with another model."""
        return TargetRow(target, replace(self.row, adapter=target.adapter))


@dataclass(frozen=True)
class Conversation:
    """Messages that a chat template makes a prompt of.

    Attributes:
        messages: the messages.
        tools: descriptions of tools; `None` without any.
        variables: further variables of the template.
        count: the number of answers.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    variables: Mapping[str, Any]
    count: int

    def rendered(self, writer: TextWriter) -> list[Prompt]:
        """Return the prompt of each answer; errors as in `ChatRenderer.render`."""
        return [writer.chat.render(self.messages, self.tools, variables=self.variables)] * self.count


class Service:
    """Answers calls by the models of a server.

    Args:
        models: the models.
        resolver: finds adapters that are not loaded.
        metrics: count rows of shadows.
        limits: limits of requests.

    Attributes:
        routes: the routing table.
    """

    def __init__(self, models: Models, resolver: Resolver, metrics: Metrics, limits: Limits) -> None:
        self.models, self._resolver, self._metrics, self._limits = models, resolver, metrics, limits
        self.routes = Routes()
        self._resolving, self._reading = asyncio.Lock(), asyncio.Lock()
        self._shadows = set[asyncio.Task[None]]()

    async def target(
        self, name: str, key: str, state: State | None = None, keep: Collection[Target] | None = None
    ) -> Target:
        """Return the model of a name or route, loaded if needed.

        Args:
            name: the name of a model or a route.
            key: the id of the request; a route with shares chooses by it.
            state: the state of the request; receives `model`, `adapter` and `shadows`.
            keep: models that must stay loaded; the caller has locked `_resolving` then.

        Raises:
            RefusedError: 404, unknown model; 409, 503, it cannot be loaded, as in `Models.load`.
        """
        chosen, shadow = self.routes.choose(name, key)
        target = self.models.find(chosen)
        if target is None:
            target = await (self.resolve(chosen) if keep is None else self._resolve(chosen, keep))
        if target is None:
            known = listed({**self.models.names(), **self.routes.table})
            what = (
                f"there is no model `{name}`"
                if chosen == name
                else f"route `{name}` uses `{chosen}`, which no longer exists"
            )
            raise RefusedError(404, f"{what}; expected one of {known}")
        if state is not None:
            state.model, state.adapter = name, target.name
            if shadow is not None:
                state.shadows = {**getattr(state, "shadows", {}), target: (name, shadow)}
        return target

    async def resolve(self, name: str) -> Target | None:
        """Load the adapter that a resolver finds by name; errors as in `Resolver.find` and `Models.load`."""
        async with self._resolving:
            return await self._resolve(name)

    async def _resolve(self, name: str, keep: Collection[Target] = ()) -> Target | None:
        if self.models.find(name.partition(PIN)[0]) is None:
            extra = await asyncio.to_thread(self._resolver.find, name, self.models.served)
            if extra is None:
                return None
            await self.models.load(replace(extra, by_name=True), keep=keep)
        return self.models.find(name)

    def adapters(self) -> dict[str, Any]:
        """Return the adapters with their tasks as JSON, by model name."""
        tasks = {}
        for name, target in self.models.names().items():
            if target.adapter is not None:
                task = target.served.session.task(target.adapter)
                tasks[name] = {"task": None if task is None else task.document()}
        return tasks

    async def answer(self, call: Call, key: str, state: State) -> list[Answer]:
        """Return an answer to each row of a call, according to the task of its adapter or of the base head.

        Raises:
            UsageError: the call names no adapter, and adapters have tasks.
            RequestError, RefusedError: the call is refused.
        """
        return [answer.document() for answer in await self.answer_rows(call, key, state)]

    async def run(self, call: Call, key: str, state: State) -> list[Answer]:
        """Return the outputs of each row of a call; errors as in `answer`."""
        computed = await self._rows_of(call, key, state, Reading(outputs=True))
        return [{"adapter": row.head.adapter, "task": None, "outputs": row.listed_outputs()} for row in computed]

    async def answer_rows(self, call: Call, key: str, state: State, reading: Reading = _USUAL) -> list[AnsweredRow]:
        """Return the rows of a call with their answers; errors as in `answer`."""
        if not call.is_named:
            self.models.only().session.named(None)
        return await self._rows_of(call, key, state, reading)

    async def _rows_of(self, call: Call, key: str, state: State, reading: Reading) -> list[AnsweredRow]:
        with ExitStack() as held:  # each is held once found, since loading the next one may unload others
            return await self.compute(await self._rows(call, key, state, held), state, reading)

    async def compute(self, rows: Sequence[TargetRow], state: State, reading: Reading = _USUAL) -> list[AnsweredRow]:
        """Compute rows, and start the computation of shadows.

        Args:
            rows: the rows.
            state: the state of the request.
            reading: treatment of long texts, and the outputs to keep.

        Raises:
            RequestError: a row is invalid.
            RefusedError: the queue is full.
        """
        state.rows = len(rows)
        computed = await self._compute_all(rows, reading)
        for target, (route, shadow) in getattr(state, "shadows", {}).items():
            places = [at for at, row in enumerate(rows) if row.target == target]
            if len(self._shadows) >= _MOST_SHADOWS or not places:
                self._metrics.shadow(route, "dropped", len(places))
                continue
            task = asyncio.create_task(
                self._shadow(route, shadow, [rows[at] for at in places], [computed[at] for at in places])
            )
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)
        return computed

    async def write_texts(
        self,
        name: str,
        prompts: Sequence[Prompt] | Conversation,
        decoding: Decoding,
        key: str,
        state: State,
        *,
        top_scores: int | None = None,
    ) -> TextJob:
        """Start to generate a text for each prompt. The caller closes the job.

        Args:
            name: the name of a model or a route.
            prompts: at least one, or a conversation.
            decoding: decoding options.
            key: the id of the request; a route with shares chooses by it.
            state: the state of the request.
            top_scores: as in `TextWriter.opened`.

        Raises:
            RequestError: the model does not generate text or has no chat template, a prompt has too few or too many
                tokens, or the template refuses the conversation.
            RefusedError: 404, unknown model; 503, the queue is full.
        """
        with ExitStack() as held:
            target = await self.target(name, key, state)
            held.enter_context(target.hold())
            queue = target.served.generating()
            if isinstance(prompts, Conversation):
                prompts = await asyncio.to_thread(prompts.rendered, queue.writer)
            state.rows = len(prompts)
            for route, _ in getattr(state, "shadows", {}).values():
                self._metrics.shadow(route, "dropped", len(prompts))
            adapters = [target.adapter] * len(prompts)
            characters = sum(len(prompt if isinstance(prompt, str) else prompt.text) for prompt in prompts)
            opened = partial(queue.writer.opened, prompts, adapters, decoding, top_scores=top_scores)
            async with nullcontext() if characters < _PART else self._reading:
                texts = await asyncio.to_thread(opened)
            job = TextJob(texts, queue.writer, held.pop_all())
        try:
            queue.submit(job)
        except RefusedError:
            job.close()
            raise
        return job

    async def transcribe(
        self, name: str, file: bytes, key: str, state: State, options: SpeechOptions, most: int
    ) -> Transcript:
        """Write the text of a sound file, window by window; each shares calls with other texts.

        Args:
            name: the name of a model or a route.
            file: the bytes of the file.
            key: the id of the request; a route with shares chooses by it.
            state: the state of the request.
            options: how it is written.
            most: the maximum number of tokens of a window.

        Raises:
            RequestError: the model does not write texts of files, the file is too long, or there is no such language.
            DataError: the file cannot be read.
            RefusedError: 404, unknown model; 503, the queue is full.
        """
        target = await self.target(name, key, state)
        with target.hold():
            queue, transcriber = target.served.transcribing()
            state.rows = 1
            for route, _ in getattr(state, "shadows", {}).values():
                self._metrics.shadow(route, "dropped", 1)
            async with self._reading:  # the spectra of a long file take hundreds of megabytes
                (opened,) = await asyncio.to_thread(transcriber.opened, [file], [target.adapter], options)
            while not opened.is_done:
                row = transcriber.row(opened, 0, None)
                is_limited = row.decoding.max_new_tokens > most
                row.decoding = replace(row.decoding, max_new_tokens=min(most, row.decoding.max_new_tokens))
                job = TextJob([transcriber.open_text(row)], queue.writer, ExitStack())
                try:
                    queue.submit(job)
                    async for _ in job.pieces():
                        pass
                finally:
                    job.close()
                if is_limited and row.finish == "length" and len(row.tokens) == most:
                    raise RequestError("the text exceeds the limit of this server", expected=f"{most:,} tokens")
                transcriber.take(opened, row)
            return transcriber.transcript(opened)

    async def _shadow(self, route: str, model: str, rows: Sequence[TargetRow], computed: Sequence[AnsweredRow]) -> None:
        """Compute rows with the shadow of a route, and compare the answers. Failures are only counted and logged."""
        try:
            while any(served.waiting for served in self.models.served):
                await asyncio.sleep(0.01)  # requests of clients come first
            target = self.models.find(model) or await self.resolve(model)
            if target is None:
                raise RequestError("the shadow no longer exists", found=f"`{model}`")
            shadow_rows = await self._compute_all([row.by(target) for row in rows], _USUAL)
            pairs = [(answer.document(), other.document()) for answer, other in zip(computed, shadow_rows, strict=True)]
        except (InputError, RefusedError) as error:
            self._metrics.shadow(route, "failed", len(rows))
            log("shadow", level=logging.WARNING, route=route, model=model, outcome="failed", reason=str(error))
            return
        for answer, other in pairs:
            outcome = "same" if same_answers(answer, other) else "different"
            self._metrics.shadow(route, outcome)
            if outcome == "different":
                log("shadow", route=route, model=model, outcome=outcome, answer=_short(answer), other=_short(other))

    async def _compute_all(self, rows: Sequence[TargetRow], reading: Reading) -> list[AnsweredRow]:
        groups: dict[LoadedBundle, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(row.target.served, []).append(index)
        with ExitStack() as stack:
            for target in dict.fromkeys(row.target for row in rows):
                stack.enter_context(target.hold())
            parts = [self._compute(served, [rows[at] for at in places], reading) for served, places in groups.items()]
            by_group = [await parts[0]] if len(parts) == 1 else await asyncio.gather(*parts)  # a task takes time
        results: list[AnsweredRow | None] = [None] * len(rows)
        for places, part in zip(groups.values(), by_group, strict=True):
            for at, answer in zip(places, part, strict=True):
                results[at] = answer
        return [answer for answer in results if answer is not None]

    async def _compute(self, served: LoadedBundle, rows: Sequence[TargetRow], reading: Reading) -> list[AnsweredRow]:
        assert served.collector is not None
        answerer = Answerer(served.session, served.reader, reading)
        plain_rows = [row.row for row in rows]
        contents = [row.asked for row in plain_rows if not row.is_arrays]
        for content in contents:
            served.check_read(content)
        # long texts and images would block the event loop; for short texts, a thread switch takes longer
        if sum(map(_characters, contents)) < _SHORT:
            read = answerer.read(plain_rows)
        else:
            read = await self._read_slowly(served, answerer, plain_rows)
        values, most = sum(_output_values(served.bundle.manifest, row) for row in read), self._limits.max_outputs
        if values > most:
            expected = f"expected at most {most:,} (`max_outputs` of the server)"
            raise RefusedError(413, f"the outputs have {number_of(values, 'value')}; {expected}")
        outputs = iter(await served.collector.answer([request for row in read for request in row.requests]))
        return [row.answered([next(outputs) for _ in row.requests]) for row in read]

    async def _read_slowly(self, served: LoadedBundle, answerer: Answerer, rows: Sequence[Row]) -> list[ReadRow]:
        """Read rows in parts, one part of any request at a time: text and images take far more memory than their bytes.

        Raises:
            RequestError: as `Answerer.read`.
            RefusedError: 413, a file has too many pixels or samples.
        """
        word = "row" if served.reader is None else served.reader.word
        named = [row if row.where else replace(row, where=f"{word} {at}") for at, row in enumerate(rows)]
        read: list[ReadRow] = []
        start = total = 0
        for end, row in enumerate(named, 1):
            total += _SHORT if row.is_arrays else _characters(row.asked)
            if total >= _PART or isinstance(row.asked, bytes) or end == len(named):
                async with self._reading:
                    read += await asyncio.to_thread(self._read_part, served, answerer, named[start:end])
                start, total = end, 0
        return read

    def _read_part(self, served: LoadedBundle, answerer: Answerer, rows: Sequence[Row]) -> list[ReadRow]:
        record = served.bundle.manifest.media
        for row in rows:
            if record is None or not isinstance(row.asked, bytes):
                continue
            size, most = record.size(row.asked, row.where), self._limits.max_file
            if size > most:
                actual = f"{row.where} has {number_of(size, 'pixel')} or samples"
                raise RefusedError(413, f"{actual}; expected at most {most:,} (`max_file` of the server)")
        return answerer.read(rows)

    async def _rows(self, call: Call, key: str, state: State, held: ExitStack) -> list[TargetRow]:
        values: Sequence[Any] | None = call.contents()
        count = len(next(iter((call.inputs or {}).values()), ())) if values is None else len(values)
        names = call.names(count)
        targets = await self._targets(call, names, key, state, held)
        if values is None:
            inputs = [record for target in targets.values() for record in target.served.bundle.manifest.inputs]
            values = call.arrays({record.name: record.dtype for record in inputs})
        choices = zip(call.strengths(count), call.weights_of(count), call.contexts(count), strict=True)
        return [
            TargetRow(target, Row(row, target.adapter, *choice))
            for target, row, choice in zip([targets[name] for name in names], values, choices, strict=True)
        ]

    async def _targets(
        self, call: Call, names: Sequence[str | None], key: str, state: State, held: ExitStack
    ) -> dict[str | None, Target]:
        """Return the model of each name, and hold it until `held` closes."""
        targets: dict[str | None, Target] = {}
        distinct = dict.fromkeys(names)
        # otherwise two requests could hold models that each other waits for
        gathers = len(distinct) > 1 and not all(self._is_loaded(name, key) for name in distinct)
        async with self._resolving if gathers else nullcontext():
            for name in distinct:
                targets[name] = await self._target_of_name(
                    call, name, key, state, targets.values() if gathers else None
                )
                held.enter_context(targets[name].hold())
        return targets

    def _is_loaded(self, name: str | None, key: str) -> bool:
        return name is None or self.models.find(self.routes.choose(name, key)[0]) is not None

    async def _target_of_name(
        self, call: Call, name: str | None, key: str, state: State, keep: Collection[Target] | None
    ) -> Target:
        """Return the model of a name; as in the C++ service, `None` and `base` are the base."""
        is_base = name == BASE and self.models.find(BASE) is None and BASE not in self.routes.table
        if name is None or is_base:
            target = Target(self.models.only(), None)
            state.model = state.adapter = target.name
            return target
        try:
            return await self.target(name, key, state, keep)
        except RefusedError as error:
            if call.model is None and error.status == 404:
                self.models.only().session.task(name)  # raises an error that lists the adapters
            raise


def _output_values(manifest: Manifest, row: ReadRow) -> int:
    """Return the values of the outputs of a row, by the lengths of its inputs; 0 if only a head is computed."""
    values = 0
    for request in row.requests:
        if not request.head_only:
            arrays = [(record.axes, request.inputs.get(record.name)) for record in manifest.inputs]  # not checked yet
            shapes = [(axes, array.shape) for axes, array in arrays if array is not None]
            sizes = {str(axis): size for axes, shape in shapes for axis, size in zip(axes, shape, strict=False)}
            for output in manifest.base_outputs:
                values += math.prod(_length(axis, sizes) for axis in output.axes)
    return values


def _length(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Return the length of an axis of an output; 1 if the inputs do not show it."""
    is_known = isinstance(axis, int) or all(name in sizes for name in names(axis))
    return length(axis, sizes) if is_known else 1


def _characters(value: object) -> int:
    """Return the characters of a row; those of a short text for a file."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Pair):
        return len(value.first) + len(value.second)
    if isinstance(value, SidedText):
        return len(value.text)
    return sum(map(_characters, value)) if isinstance(value, list) else _SHORT


_UNCOMPARED = ("adapter", "probability", "probabilities")
"""Keys in which the answer of a shadow may differ."""

_LONG = ("probabilities", "tokens", "vector", "outputs")
"""Keys that are too long for the log."""


def same_answers(answer: object, other: object) -> bool:
    """Return whether two answers have equal labels and positions and close numbers; probabilities may differ."""
    if isinstance(answer, Mapping) and isinstance(other, Mapping):
        keys = [set(each).difference(_UNCOMPARED) for each in (answer, other)]
        return keys[0] == keys[1] and all(same_answers(answer[key], other[key]) for key in keys[0])
    if isinstance(answer, list) and isinstance(other, list):
        return len(answer) == len(other) and all(map(same_answers, answer, other))
    if isinstance(answer, float) and isinstance(other, float):
        return math.isclose(answer, other, rel_tol=1e-3, abs_tol=1e-3)
    return answer == other


def _short(answer: Answer) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in _LONG}
