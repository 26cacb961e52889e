"""Golden texts, `golden/texts.json`: texts, the ids that a tokenizer makes of them, and the answers of adapters.

Specified in `docs/format.md`; any client with a tokenizer can replay them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from adapter_export.errors import FormatError, within
from adapter_export.format.files import canonical_json
from adapter_export.format.records import (
    SEMVER,
    Count,
    NotEmpty,
    NotNegative,
    Sha256,
    record_from_json,
    version_checked,
)
from adapter_export.reading.documents import parse_json
from adapter_export.reading.regular_files import read_bytes
from adapter_export.text import Pair

GOLDEN_TEXTS_VERSION = "1.0.0"
"""The version of the format that is written, and the newest that is read."""


@dataclass(frozen=True)
class GoldenText:
    """A text, or a pair of texts, and what becomes of it.

    Attributes:
        name: unique in its set.
        text: as a user sends it; what a task puts before each text is not in it.
        pair: the second text of a pair; null for one text.
        ids: the tokens, special ones included, cut, and not padded.
        token_type_ids: the type of each token.
        answer: what the adapter says, as every client writes it; of a token task a list with something for each token,
            of a span its first and last token. Null where nothing was computed: then the ids alone are compared.
        context: of a span which tokens may be the answer, those of the second text: the first of them, and the one
            behind the last. Null for other tasks.
        decided: whether no other choice is nearer than rounding. Where it is false, the numbers of the answer alone
            are compared.
    """

    name: Annotated[str, NotEmpty()]
    text: str
    pair: str | None
    ids: Annotated[tuple[Count, ...], NotEmpty()]
    token_type_ids: Annotated[tuple[Count, ...], NotEmpty()]
    answer: Mapping[str, Any] | None = None
    context: tuple[Count, Count] | None = None
    decided: bool = True

    @property
    def input(self) -> str | Pair:
        """The text, or the pair."""
        return self.text if self.pair is None else Pair(self.text, self.pair)


@dataclass(frozen=True)
class GoldenTextSet:
    """Texts as the users of one adapter send them, or as the base takes them.

    How a text is cut, and what stands before it, is what the manifest says of the adapter.

    Attributes:
        adapter: the adapter; null for the base, which gives ids and no answers.
        reference: what computed the answers, such as `torch 2.13.0 float32`; never the exported graph. Null without
            answers.
        absolute: the allowed |found - expected| of every number of an answer.
        reason: what that follows from. For people.
        texts: the texts.
    """

    adapter: str | None
    reference: str | None
    absolute: NotNegative
    reason: str | None
    texts: tuple[GoldenText, ...]


@dataclass(frozen=True)
class GoldenTexts:
    """Texts, the ids that the base's own tokenizer makes of them, and the answers of the reference.

    This is `golden/texts.json`. Specified in docs/format.md.

    Attributes:
        version: the version of this format. A reader refuses another major version.
        digest: that of the tokenizer that made the ids, as `text.digest` of the manifest.
        tokenizer: the library, its version, and its class. For people.
        sets: one of the base, then one for each adapter with a head whose task is known.
    """

    version: Annotated[str, SEMVER]
    digest: Sha256
    tokenizer: str
    sets: tuple[GoldenTextSet, ...]


def golden_texts_json(texts: GoldenTexts) -> bytes:
    """Return the document; the same texts always give the same bytes."""
    return canonical_json(asdict(texts))


def parse_golden_texts(data: bytes, where: object) -> GoldenTexts:
    """Read golden texts from bytes; `where` names them in messages.

    Raises:
        FormatError: they break the format; `VersionError` is a kind of it.
    """
    document = parse_json(data, where)
    with version_checked(document, GOLDEN_TEXTS_VERSION, where), within(where):
        found = record_from_json(GoldenTexts, document)
        for index, one in enumerate(found.sets):
            _check_set(one, f"`$.sets[{index}].texts`")
        names = [one.adapter for one in found.sets]
        if len(set(names)) < len(names):
            raise FormatError("an adapter has two sets", where="`$.sets`")
    return found


def read_golden_texts(path: Path) -> GoldenTexts:
    """Read golden texts from a file.

    Raises:
        FileError: it cannot be read.
        FormatError: as `parse_golden_texts`.
    """
    return parse_golden_texts(read_bytes(path), path)


def _check_set(one: GoldenTextSet, where: str) -> None:
    counts = Counter(text.name for text in one.texts)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise FormatError("a name occurs twice", where=where, found=f"`{twice}`")
    uneven = next((text.name for text in one.texts if len(text.ids) != len(text.token_type_ids)), None)
    if uneven is not None:
        raise FormatError("has not one type for each token", where=where, found=f"`{uneven}`")
