"""Replay golden texts: read each as a user's, compare its ids, and answer it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from golden_answers import Fault, differs, within

from adapter_export.errors import FormatError, InputError
from adapter_export.format.golden_texts import GoldenText, GoldenTextSet, read_golden_texts
from adapter_export.format.lengths import Lengths
from adapter_export.runtime import Bundle, Session
from adapter_export.runtime.answerer import Answerer, Row
from adapter_export.runtime.text_reader import TextReader, encoded, prepared


def replay_texts(bundle: Bundle, session: Session) -> Iterator[tuple[str | None, float, tuple[Fault, ...]]]:
    """Compare the ids and answers of golden texts for the base and every adapter with a task.

    Returns for each the largest deviation of a number over the allowed one, infinite if anything else differs, and the
    differing texts.

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
        found = {each.name: _ids_fault(reader, name, each, bundle.manifest.tokens) for each in sets[name].texts}
        faults = {text: fault for text, fault in found.items() if fault is not None}
        worst = np.inf if faults else 0.0
        for each, far, fault in _compared(reader, sets[name], faults.copy()):
            worst = max(worst, far)
            if fault:
                faults.setdefault(each.name, fault)
        yield name, float(worst), tuple(Fault(*one) for one in faults.items())


def _ids_fault(reader: TextReader, adapter: str | None, golden: GoldenText, takes: Lengths) -> str | None:
    try:
        if adapter is None:  # the base, and not its base head, which may cut elsewhere
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
        counts = f"{len(ids)} tokens, expected {len(golden.ids)}; the base takes {takes}"
        return f"ids from token {first} on: found {shown[0]}, expected {shown[1]} ({counts})"
    return None if types == list(golden.token_type_ids) else "other token types"


def _compared(
    reader: TextReader, texts: GoldenTextSet, left_out: Collection[str]
) -> Iterator[tuple[GoldenText, float, str | None]]:
    """Return the deviation of each answer from the golden one, and what differs; all texts are one request."""
    known = [] if texts.adapter is None else [golden for golden in texts.texts if golden.name not in left_out]
    answered = [golden for golden in known if golden.answer is not None]
    asked = [Row(golden.input, texts.adapter, where=f"`{golden.name}`") for golden in answered]
    for golden, found in zip(answered, Answerer(reader.session, reader).answer(asked), strict=True):
        (result,) = found.results
        context = None if golden.context is None else within(golden.context, len(result))
        said = found.head.task.answer(result, None, context).document()
        yield golden, *differs(said, golden.answer, texts.absolute, golden.decided)
