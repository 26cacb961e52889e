"""Golden texts of a bundle: made by the base's tokenizer and a reference, replayed the way a client reads texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Allowance, Golden
from adapter_export.bundle.report import BASE
from adapter_export.errors import BaseModelError, MissingExtraError, RequestError
from adapter_export.format.check_report import Finding
from adapter_export.format.generation import GenerationRecord
from adapter_export.format.golden_texts import (
    GOLDEN_TEXTS_VERSION,
    GoldenText,
    GoldenTexts,
    GoldenTextSet,
    different,
    sample_texts,
)
from adapter_export.format.manifest import InputRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.tasks import Task
from adapter_export.numerics.runner import Runner, run
from adapter_export.onnx_backend.slots import HeadSum, adapter_output
from adapter_export.runtime.bundle import reader
from adapter_export.runtime.session import Session
from adapter_export.runtime.text_reader import encoded, prepared
from adapter_export.tables import number_of, verb_for
from adapter_export.text import EncodedText, Pair, SidedText, TextSide, Tokenizer, unfillable
from adapter_export.words import quoted

CHECK = "golden texts"
"""Name of the check in reports."""

_MOST_ANSWERED = 128
"""Maximum tokens of a text that is answered; of longer ones, only the ids are kept."""

_MOST_SHOWN = 80
"""Maximum characters of a value in a message."""

_SHOWN = 12
"""Ids that a message shows around the first that differs."""


@dataclass(frozen=True)
class TextMaker:
    """Makes golden texts.

    Attributes:
        tokenizer: tokenizer of the bundle.
        library_texts: ids of the same texts from the model's own library, if known.
        inputs: data inputs of the base.
        outputs: names of the base's outputs.
        references: computes the answers; never the exported graph.
        allowance: determines the budgets of answers.
        pads: whether rows may be padded to a length that the base accepts, by the name of their adapter.
    """

    tokenizer: Tokenizer
    library_texts: GoldenTexts | None
    inputs: Sequence[InputRecord]
    outputs: Sequence[str]
    references: Runner
    allowance: Allowance
    pads: Mapping[str, bool]

    def all(self, adapters: Sequence[tuple[Adapter, Golden]], heads: Sequence[HeadSum]) -> GoldenTexts:
        """Return the golden texts of a bundle with these adapters; arguments of each as for `adapter`."""
        comparable = self.library_texts is not None and self.library_texts.digest == self.tokenizer.digest
        wrong = different(self.tokenizer, self.library_texts) if self.library_texts is not None and comparable else []
        if wrong:
            raise BaseModelError(
                "the tokenizer's ids differ from those of the model's own library",
                found=f"different ids for {number_of(len(wrong), 'text')}: {quoted(wrong[:3])}",
                expected=f"the ids of {self.library_texts.tokenizer if self.library_texts else ''}",
                fix="save the tokenizer again with `save_pretrained`, and capture the base again",
            )
        made_by = (
            self.library_texts.tokenizer
            if self.library_texts is not None and comparable
            else f"tokenizers {version('tokenizers')}"
        )
        sets = [self.adapter(adapter, adapter_output(heads, adapter), golden) for adapter, golden in adapters]
        return GoldenTexts(
            GOLDEN_TEXTS_VERSION, str(self.tokenizer.digest), made_by, (self.base(), *filter(None, sets))
        )

    def base(self) -> GoldenTextSet:
        """Return the texts of the base: their ids."""
        return GoldenTextSet(None, None, 0.0, None, tuple(text for text, _ in self._texts(None)))

    def adapter(self, adapter: Adapter, output: str | None, golden: Golden) -> GoldenTextSet | None:
        """Return the texts of an adapter, with answers, or `None` for an adapter without a head or a known task.

        `output` is the output of its head; the budgets of its golden vectors `golden` are the minimum.
        """
        task = adapter.task
        if task is None or output is None:
            return None
        texts = list(self._texts(task))
        results = self._results(adapter, output, [row for _, row in texts])
        if not results:
            return GoldenTextSet(adapter.name, None, 0.0, None, tuple(text for text, _ in texts))
        budgets = [golden.budgets[output], self.allowance.budget(*results.values())]
        allowed = max(budgets, key=lambda budget: budget.absolute)
        rows = []
        for at, (text, row) in enumerate(texts):
            if at in results:
                text = _with_answer(text, task, results[at], row, allowed.absolute)
            rows.append(text)
        return GoldenTextSet(adapter.name, self.references.description, allowed.absolute, allowed.reason, tuple(rows))

    def _texts(self, task: Task | None) -> Iterator[tuple[GoldenText, EncodedText]]:
        """Yield the texts of a task, without those that have no token in this tokenizer."""
        most = self.tokenizer.max_tokens
        limit = most if task is None or task.max_tokens is None else min(task.max_tokens, most)
        answered = {}
        if self.library_texts is not None and self.library_texts.digest == self.tokenizer.digest:
            answered = {text.input: text for text_set in self.library_texts.sets for text in text_set.texts}
        for at, (name, text) in enumerate(sample_texts(limit)):
            if task is not None and isinstance(text, Pair) != (task.input == "pair"):
                continue
            side = get_args(TextSide)[at % 2] if task is not None and task.has_sides else None
            sided = text if side is None else SidedText(str(text), side)
            try:
                (row,) = encoded(self.tokenizer, [(piece, task) for piece in prepared(sided, task, None, "text")])
            except RequestError:  # the maximum length has no room for a pair
                continue
            ids, types = row.encoding.ids, row.encoding.type_ids
            golden = (
                answered.get(text) if task is None or not (task.prefix or task.has_sides or task.template) else None
            )
            if golden is not None and (not row.cut or (task is None and len(golden.ids) == limit)):
                ids, types = list(golden.ids), list(golden.token_type_ids)
            if ids:
                first, second = text if isinstance(text, Pair) else (text, None)
                yield GoldenText(name, first, second, tuple(ids), tuple(types), side=side), row

    def _results(self, adapter: Adapter, output: str, rows: Sequence[EncodedText]) -> dict[int, np.ndarray]:
        """Return the result of each text by index: texts of equal length run together, so that nothing is padded."""
        names = [record.name for record in self.inputs]
        if unfillable(names) or any(record.dtype != "int64" for record in self.inputs):
            return {}
        groups: dict[int, list[int]] = {}
        for at, row in enumerate(rows):
            if len(row.encoding.ids) <= _MOST_ANSWERED:
                groups.setdefault(len(row.encoding.ids), []).append(at)
        if not self.references.keeps_weights:  # a run takes seconds
            groups = dict([max(groups.items(), key=lambda group: len(group[1]))]) if groups else {}
        one_by_one = any(isinstance(record.axes[0], int) for record in self.inputs)
        task, pads = adapter.task, self.pads[adapter.name]
        by_row: dict[int, np.ndarray] = {}
        for group in groups.values():
            for some in [[at] for at in group] if one_by_one else [group]:
                try:
                    arrays = self.tokenizer.arrays([rows[at].encoding for at in some], names, pads=pads)
                    results = run(self.references, arrays, adapter, self.outputs, output)[output]
                except RequestError:  # the base does not accept this length, and padding would change the answer
                    continue
                tokens = len(rows[some[0]].encoding.ids)
                answers = results if task is None or task.kind.pools else results[:, :tokens]
                by_row |= dict(zip(some, answers, strict=True))
        return by_row


def _with_answer(text: GoldenText, task: Task, result: np.ndarray, row: EncodedText, absolute: float) -> GoldenText:
    if not task.kind.has_golden_texts:
        return text
    context = task.kind.context(row, task)
    places = None if context is None else np.flatnonzero(context)
    if places is not None and not len(places):  # the second text has no tokens
        return text
    return replace(
        text,
        answer=task.answer(result, None, context).document(),
        decided=task.is_decided(result, absolute, context),
        context=None if places is None else (int(places[0]), int(places[-1]) + 1),
    )


def replay(bundle: OpenedBundle, texts: GoldenTexts, names: Sequence[str | None], *, run: bool) -> list[Finding]:
    """Encode and answer golden texts the way a client does, and compare ids and answers.

    Without the tokenizers library the stored ids are used, and the report says so; `run` is false if the graph is too
    large to run here.
    """
    text = bundle.manifest.text
    if text is None:
        return []
    sets = {text_set.adapter: text_set for text_set in texts.sets}
    findings: list[Finding] = []
    if texts.digest != text.digest:
        detail = f"made with the tokenizer {texts.digest[:12]}…, the bundle's is {text.digest[:12]}…"
        findings.append(Finding.tested(CHECK, "tokenizer", False, detail))
    tokenizer, missing = None, ""
    try:
        tokenizer = bundle.tokenizer
        if tokenizer.digest != text.digest:
            detail = f"`{text.tokenizer}` has the digest {str(tokenizer.digest)[:12]}…, expected {text.digest[:12]}…"
            findings.append(Finding.tested(CHECK, "tokenizer", False, detail))
    except MissingExtraError:
        missing = "ids not compared: `tokenizers` is not installed"
    session = bundle.runtime_session() if run else None
    for name in names:
        task = None if name is None else bundle.record(name).task
        if task is not None and task.tokenizer not in (None, text.digest):
            trained = f"was trained with the tokenizer {str(task.tokenizer)[:12]}…"
            detail = f"{trained}, the bundle's is {text.digest[:12]}…"
            findings.append(Finding.tested("task", name or BASE, False, detail))
        most = bundle.manifest.max_tokens or 0
        if task is not None and (task.max_tokens or 0) > most:
            detail = f"was trained on up to {task.max_tokens} tokens, the bundle accepts {most}"
            findings.append(Finding.tested("task", name or BASE, False, detail))
        if name in sets:
            findings.append(_replay(sets[name], task, tokenizer, session, bundle, missing))
        elif name is None or task is not None:
            findings.append(Finding.tested(CHECK, name or BASE, False, "none for this adapter"))
    return findings


@dataclass(frozen=True)
class Contract:
    """Texts, head, processor and generation of the model that a bundle was built from.

    Attributes:
        tokenizer: the text of its `tokenizer.json`, if it has one.
        texts: ids of golden texts from its own library, if known.
        head: its base head, if it has one.
        processor: digest of its image or audio processor, if it has one.
        generation: its settings of text generation, if they are known.
        chat: digest of its chat templates, if it has some.
    """

    tokenizer: str | None = None
    texts: GoldenTexts | None = None
    head: Adapter | None = None
    processor: str | None = None
    generation: GenerationRecord | None = None
    chat: str | None = None


def check_contract(
    bundle: OpenedBundle, texts: GoldenTexts, names: Sequence[str | None], model: Contract
) -> Iterator[Finding]:
    """Compare the ids of golden texts with those of the model's own tokenizer, and the task of its base head."""
    text, base_head = bundle.manifest.text, model.head
    name = bundle.manifest.head
    if base_head is not None and base_head.head is not None and name in names and name is not None:
        expected, stored = base_head.head.task, bundle.record(name).task
        same = expected == stored
        detail = "matches the model" if same else f"{_facts(stored)}, the model has {_facts(expected)}"
        yield Finding.tested("task", name, same, detail)
    if text is None:
        return
    if model.tokenizer is None:
        yield Finding.tested(CHECK, "model", True, "ids not compared: the model has no tokenizer")
        return
    try:
        reference = reader(model.tokenizer, bundle.manifest)
        ours = bundle.tokenizer
    except MissingExtraError:
        detail = "ids not compared with the model's: `tokenizers` is not installed"
        yield Finding.tested(CHECK, "model", True, detail)
        return
    tasks = [record.task for record in bundle.manifest.adapters if record.name in names and record.task is not None]
    if reference.digest != text.digest and tasks and all(task.tokenizer == text.digest for task in tasks):
        detail = "the bundle's tokenizer is not the model's, but the one its adapters were trained with"
        yield Finding.tested(CHECK, "model", True, detail)
        return
    faults: dict[str, str] = {}
    count = 0
    for text_set in texts.sets:
        if text_set.adapter not in names:
            continue
        head = None if text_set.adapter is None else bundle.source(text_set.adapter).head
        count += len(text_set.texts)
        for golden in text_set.texts:
            fault = _ids_fault(reference, golden, None if head is None else head.task)
            if fault is not None:
                faults.setdefault(f"{text_set.adapter or BASE}, `{golden.name}`", fault)
    if model.texts is not None:
        library = f"ids differ from those of {model.texts.tokenizer}"
        faults |= {f"`{name}`": library for name in different(ours, model.texts)}
    detail = f"the ids of {number_of(count, 'text')} match the model's own tokenizer"
    if faults:
        place, fault = next(iter(faults.items()))
        detail = f"{number_of(len(faults), 'text')} unlike the model's own tokenizer; {place}: {fault}"
    yield Finding.tested(CHECK, "model", not faults, detail)


def _facts(task: Task | None) -> str:
    return "nothing" if task is None else json.dumps(task.document(), ensure_ascii=False)


def _replay(
    text_set: GoldenTextSet,
    task: Task | None,
    tokenizer: Tokenizer | None,
    session: Session | None,
    bundle: OpenedBundle,
    missing: str,
) -> Finding:
    faults: dict[str, str] = {}
    for text in text_set.texts:
        fault = None if tokenizer is None else _ids_fault(tokenizer, text, task)
        if fault is not None:
            faults.setdefault(text.name, fault)
    answered = [text for text in text_set.texts if text.answer is not None]
    if session is not None and answered:
        for name, fault in _answer_faults(session, answered, text_set, bundle):
            faults.setdefault(name, fault)
    detail = number_of(len(text_set.texts), "text") + (f", {missing}" if missing else ", ids equal")
    if answered and session is not None:
        detail += f", {number_of(len(answered), 'answer')} within {text_set.absolute:.1e}"
        undecided = sum(not text.decided for text in answered)
        detail += f", {undecided} of them by their numbers only" if undecided else ""
    elif text_set.adapter is not None:
        detail += ", no answers"
    if faults:
        name, fault = next(iter(faults.items()))
        differ = f"{len(faults)} of {number_of(len(text_set.texts), 'text')} {verb_for(len(faults), 'differ')}"
        detail = f"{differ}; `{name}`: {fault}"
    return Finding.tested(CHECK, text_set.adapter or BASE, not faults, detail)


def _ids_fault(tokenizer: Tokenizer, text: GoldenText, task: Task | None) -> str | None:
    """Return the difference between the tokens of a text and the expected ones, if any."""
    try:
        (row,) = encoded(tokenizer, [(piece, task) for piece in prepared(text.input, task, None, "text")])
    except RequestError as error:
        return f"is rejected: {error}"
    for what, actual, expected in (
        ("ids", row.encoding.ids, list(text.ids)),
        ("token types", row.encoding.type_ids, list(text.token_type_ids)),
    ):
        if actual != expected:
            return f"{what} found {_shown(actual, expected)}, expected {_shown(expected, actual)}"
    return None


def _shown(first: Sequence[int], other: Sequence[int]) -> str:
    """Return the ids around the first that differs, and their number."""
    same = next((at for at, pair in enumerate(zip(first, other, strict=False)) if pair[0] != pair[1]), len(other))
    start = max(0, min(same, len(first)) - _SHOWN // 3)
    some = " ".join(map(str, first[start : start + _SHOWN]))
    return (
        f"{'… ' if start else ''}{some}{' …' if len(first) > start + _SHOWN else ''} ({number_of(len(first), 'token')})"
    )


def _answer_faults(
    session: Session, texts: Sequence[GoldenText], text_set: GoldenTextSet, bundle: OpenedBundle
) -> Iterator[tuple[str, str]]:
    """Yield the names of texts with a wrong answer, and the fault; one length at a time."""
    names = [record.name for record in bundle.manifest.inputs]
    one_by_one = any(isinstance(record.axes[0], int) for record in bundle.manifest.inputs)
    groups: dict[object, list[GoldenText]] = {}
    for text in texts:
        groups.setdefault(text.name if one_by_one else len(text.ids), []).append(text)
    for group in groups.values():
        ids = np.array([text.ids for text in group], np.int64)
        types = np.array([text.token_type_ids for text in group], np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
        contexts = [_context(text) for text in group]
        try:
            fit, count = bundle.manifest.fit, ids.shape[1]
            behind = 0 if fit is None else fit(count, pads=session.may_pad(text_set.adapter)) - count
            arrays = {name: np.pad(inputs[name], [(0, 0), (0, behind)]) for name in names if name in inputs}
            contexts = [None if text_set is None else np.pad(text_set, (0, behind)) for text_set in contexts]
            answers = session.answer(arrays, text_set.adapter, context=contexts)
        except RequestError as error:
            yield from ((text.name, f"is rejected: {error}") for text in group)
            continue
        for text, answer in zip(group, answers, strict=True):
            for fault in answer_faults(
                answer.first(count).document(), text.answer, text_set.absolute, decided=text.decided
            ):
                yield text.name, fault


def _context(text: GoldenText) -> npt.NDArray[np.bool_] | None:
    if text.context is None:
        return None
    places = np.arange(len(text.ids))
    return (places >= text.context[0]) & (places < text.context[1])


def answer_faults(actual: Any, expected: Any, absolute: float, *, decided: bool, where: str = "") -> Iterator[str]:
    """Yield the differences of an answer: a label, a position, a number that exceeds the budget.

    Labels and positions are compared if they are `decided`, numbers always.
    """
    message = f"`{where}` found {_short(actual)}, expected {_short(expected)}"
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        if list(actual) != list(expected) and set(actual) != set(expected):
            yield f"`{where or 'answer'}` has {', '.join(map(str, actual))}, expected {', '.join(map(str, expected))}"
            return
        for key, value in expected.items():
            inner = f"{where}.{key}" if where else key
            yield from answer_faults(actual[key], value, absolute, decided=decided, where=inner)
    elif (
        isinstance(expected, list)
        and isinstance(actual, list)
        and not any(isinstance(value, str) for value in (*actual, *expected))
    ):
        if len(actual) != len(expected):
            yield f"`{where}` has {number_of(len(actual), 'value')}, expected {len(expected)}"
            return
        for at, pair in enumerate(zip(actual, expected, strict=True)):
            yield from answer_faults(*pair, absolute, decided=decided, where=f"{where}[{at}]")
    elif isinstance(expected, float) and isinstance(actual, float):
        if not abs(actual - expected) <= absolute:
            yield f"{message}, budget {absolute:.1e}"
    elif decided and actual != expected:
        yield message


def _short(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
