"""Golden schedule: golden texts written together by rows that join and leave, so that they prove the engine as well."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from adapter_export.decoding import Decoding
from adapter_export.errors import InputError
from adapter_export.format.manifest import Manifest, WrittenRecord
from adapter_export.runtime.generation.call_budget import CallBudget
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import WrittenRow
from adapter_export.runtime.generation.running_rows import RunningRows
from adapter_export.tables import number_of

_WAVE = 12
"""Golden texts of a wave: six of two adapters. Each is written twice, so up to 24 rows run at a time."""

_SPAN = 12
"""Maximum tokens of a row."""

_LATEST = 8
"""Last step at which a row joins."""

_SMALL = CallBudget(tokens=4, least=1)
"""Budget that spreads prompts over several calls."""


@dataclass(frozen=True)
class GoldenText:
    """A golden text and the adapter that writes it; `None` is the base."""

    adapter: str | None
    record: WrittenRecord

    @property
    def prompt(self) -> Sequence[int]:
        """The tokens of the prompt."""
        return self.record.prompt

    def fault(self, row: WrittenRow, ends: Collection[int]) -> str | None:
        """Return how the tokens of a finished row differ from the golden ones; `None` if they do not."""
        most, tokens = row.decoding.max_new_tokens, list(self.record.tokens)
        ended = tokens[-1] in ends and len(tokens) <= most
        expected = (tokens[:-1] if ended else tokens)[:most]
        if row.error is not None:
            return f"{list(self.prompt)}: {row.error}"
        if row.finish is None:
            return f"{list(self.prompt)}: the text has no end after {number_of(len(row.tokens), 'token')}"
        same = row.tokens == expected if ended else row.tokens[: len(expected)] == expected
        return None if same else f"{row.tokens} of {list(self.prompt)}, not {expected}"


@dataclass
class Replay:
    """The outcome of a schedule.

    Attributes:
        rows: number of rows.
        most: maximum number of rows in a call.
        faults: how rows differ from golden texts, by adapter.
    """

    rows: int = 0
    most: int = 0
    faults: dict[str | None, list[str]] = field(default_factory=dict)

    @property
    def detail(self) -> str:
        """The counts, in words."""
        calls = f"up to {self.most} in a call" if self.most > 1 else "each in calls of its own"
        return f"{number_of(self.rows, 'row')} that join and leave, {calls}"


def golden_texts(manifest: Manifest, names: Iterable[str | None]) -> list[GoldenText]:
    """Return the golden texts of the base (`None`) and of adapters, in this order."""
    golden = {None: manifest.golden} | {record.name: record.golden for record in manifest.adapters}
    return [GoldenText(name, record) for name in names for record in golden[name].written]


def replay_schedule(decoder: Decoder, texts: Sequence[GoldenText], *, brief: bool = False) -> Replay:
    """Write golden texts together, as docs/reference/format.md specifies, and compare each with its golden tokens.

    Args:
        decoder: computes the rows.
        texts: golden texts of adapters that are loaded.
        brief: only the first wave and the usual budget, for a server that starts, or a large base. By default, all
            waves are also written with prompts in parts, and as one request.

    Raises:
        RequestError: an adapter is not loaded.
    """
    replay, small = Replay(), decoder.within(replace(_SMALL, running=decoder.budget.running))
    for start in range(0, _WAVE if brief else len(texts), _WAVE):
        wave = texts[start : start + _WAVE]
        _replay_running(decoder, wave, replay)
        if not brief:
            _replay_running(small, wave, replay)
            _replay_request(small, wave, replay)
    return replay


def _replay_running(decoder: Decoder, wave: Sequence[GoldenText], replay: Replay) -> None:
    """Write each text of a wave twice, with rows that join and leave between steps."""
    texts = list(_joining(wave))
    rows = [(step, text, _row(at, text, decoder, count)) for at, (step, text, count) in enumerate(texts)]
    running = RunningRows(decoder)
    # every step computes at least one token of a prompt or of each row
    most = _LATEST + sum(len(text.prompt) for text in wave) * 2 + _SPAN
    try:
        for step in range(most + 1):
            running.join([row for joining, _, row in rows if joining == step])
            if step > _LATEST and all(row.is_done for _, _, row in rows):
                break
            running.step()
            replay.most = max([replay.most, *running.calls])
    except InputError as error:
        _fail(rows, error)
    _compare(decoder, [(text, row) for _, text, row in rows], replay)


def _replay_request(decoder: Decoder, wave: Sequence[GoldenText], replay: Replay) -> None:
    """Write the texts of a wave as one request."""
    rows = [(0, text, _row(at, text, decoder, len(text.record.tokens))) for at, text in enumerate(wave)]
    try:
        for _ in decoder.write_rows([row for _, _, row in rows]):
            pass
    except InputError as error:
        _fail(rows, error)
    _compare(decoder, [(text, row) for _, text, row in rows], replay)


def _joining(wave: Sequence[GoldenText]) -> Iterator[tuple[int, GoldenText, int]]:
    """Yield the step at which each row joins, its text, and the number of its tokens.

    The first row of a text joins rows of the same length, without padding. Every third of these rows leaves after half
    of its golden tokens, and the others go on after theirs. The second row joins rows of other lengths, and leaves
    after its golden tokens.
    """
    for at, text in enumerate(wave):
        half = (len(text.record.tokens) + 1) // 2
        yield min(len(text.prompt) - 1, _LATEST), text, half if at % 3 == 1 else _SPAN
    for at, text in enumerate(reversed(wave)):
        yield min(at + 1, _LATEST), text, len(text.record.tokens)


def _row(at: int, text: GoldenText, decoder: Decoder, count: int) -> WrittenRow:
    return decoder.golden_row(at, text.record, text.adapter, Decoding(min(count, _SPAN)))


def _fail(rows: Iterable[tuple[int, GoldenText, WrittenRow]], error: InputError) -> None:
    """Set the error of every row that is not done."""
    for _, _, row in rows:
        if not row.is_done:
            row.error = error


def _compare(decoder: Decoder, rows: Sequence[tuple[GoldenText, WrittenRow]], replay: Replay) -> None:
    replay.rows += len(rows)
    for text, row in rows:
        fault = text.fault(row, decoder.record.end)
        if fault is not None:
            replay.faults.setdefault(text.adapter, []).append(fault)
