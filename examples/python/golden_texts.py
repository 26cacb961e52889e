"""Replay golden texts: read each as a user's, compare its ids, and answer it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapter_export.errors import FormatError, InputError
from adapter_export.format.golden_texts import GoldenText, GoldenTextSet, read_golden_texts
from adapter_export.runtime import Bundle, Session
from adapter_export.runtime.answers import document
from adapter_export.runtime.text_reader import TextReader, encoded, prepared


@dataclass(frozen=True)
class Fault:
    """A golden text whose ids or whose answer is another, and how."""

    name: str
    fault: str


def replay_texts(bundle: Bundle, session: Session) -> Iterator[tuple[str | None, float, tuple[Fault, ...]]]:
    """How the base and every adapter with a task read and answer their golden texts.

    For each, the largest deviation of a number as a part of the allowed one, infinite where anything else differs, and
    the texts that differ.

    Raises:
        FormatError: there are no golden texts of one of them, or they are those of another tokenizer.
    """
    path, text = bundle.manifest.golden_texts, bundle.manifest.text
    if path is None or text is None:
        return
    texts, reader = read_golden_texts(bundle.folder / path), bundle.texts(session)
    if texts.digest != text.digest:
        raise FormatError("golden texts of another tokenizer", where=path, found=texts.digest, expected=text.digest)
    sets = {one.adapter: one for one in texts.sets}
    for name in [None, *(each.name for each in bundle.manifest.adapters if each.task is not None)]:
        if name not in sets or not sets[name].texts:
            raise FormatError("lacks golden texts", where=path, expected=f"those of `{name or 'base'}`")
        faults = {each.name: fault for each in sets[name].texts if (fault := _ids_fault(reader, name, each))}
        worst = np.inf if faults else 0.0
        for each, far, fault in _compared(bundle, reader, sets[name]):
            worst = max(worst, far)
            if fault:
                faults.setdefault(each.name, fault)
        yield name, float(worst), tuple(Fault(*one) for one in faults.items())


def _ids_fault(reader: TextReader, adapter: str | None, golden: GoldenText) -> str | None:
    try:
        if adapter is None:  # the base, and not its own head, which may cut elsewhere
            (row,) = encoded(reader.tokenizer, [(piece, None) for piece in prepared(golden.input, None, None, 0)])
        else:
            (row,) = reader.read([golden.input], adapter)[0].rows
    except InputError as error:
        return f"is refused: {error}"
    ids, types = row.encoding.ids, row.encoding.type_ids
    if ids != list(golden.ids):
        pairs = zip(ids, golden.ids, strict=False)
        first = next((at for at, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(ids), len(golden.ids)))
        shown = [" ".join(map(str, each[first : first + 4])) for each in (ids, golden.ids)]
        return f"ids from token {first} on: found {shown[0]}, expected {shown[1]}"
    return None if types == list(golden.token_type_ids) else "other token types"


def _compared(
    bundle: Bundle, reader: TextReader, texts: GoldenTextSet
) -> Iterator[tuple[GoldenText, float, str | None]]:
    """How far the answer to each text is from what it must be, and what differs."""
    for golden in texts.texts:
        if golden.answer is None or texts.adapter is None:
            continue
        ids = np.array([golden.ids], np.int64)
        types = np.array([golden.token_type_ids], np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
        places = np.arange(len(golden.ids))
        context = None if golden.context is None else (places >= golden.context[0]) & (places < golden.context[1])
        given = {record.name: inputs[record.name] for record in bundle.manifest.inputs}
        (said,) = reader.session.answer(given, texts.adapter, context=[context])
        yield golden, *_differs(document(said), golden.answer, texts.absolute, golden.decided)


def _differs(found: Any, expected: Any, absolute: float, decided: bool, where: str = "") -> tuple[float, str | None]:
    """The largest deviation of a number as a part of the allowed one, infinite where more differs, and what."""
    if isinstance(expected, Mapping | list) and isinstance(found, Mapping | list) and where != "labels":
        own, wanted = [dict(each) if isinstance(each, Mapping) else dict(enumerate(each)) for each in (found, expected)]
        if set(own) != set(wanted):
            return (
                np.inf,
                f"`{where or 'answer'}` has {', '.join(map(str, own))}, expected {', '.join(map(str, wanted))}",
            )
        inner = [_differs(own[k], wanted[k], absolute, decided, f"{where}.{k}" if where else str(k)) for k in wanted]
        return max([far for far, _ in inner], default=0.0), next((fault for _, fault in inner if fault), None)
    if isinstance(expected, int | float) and isinstance(found, int | float) and where not in ("start", "end"):
        far = abs(found - expected)
        worst = np.inf if np.isnan(far) else far / absolute if far else 0.0
        fault = f"`{where}` found {found}, expected {expected}, allowed {absolute}"
        return float(worst), None if worst <= 1 else fault
    if decided and found != expected:
        return np.inf, f"`{where}` found {found}, expected {expected}"
    return 0.0, None
