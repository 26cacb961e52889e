"""Texts of audio files, with the bundle of a speech model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from adapter_export.commands.command import Screen
from adapter_export.errors import RequestError

if TYPE_CHECKING:
    from adapter_export.graph.tasks.asked import Row
    from adapter_export.runtime import Bundle, Session
    from adapter_export.runtime.generation.transcriber import SpeechOptions, Transcript

_AT_ONCE = 8
"""Files that are written at a time."""


def reads_speech(bundle: Bundle) -> bool:
    """Return whether a bundle generates the texts of files."""
    from adapter_export.runtime.generation.decoder_inputs import DecoderInputs

    try:
        return DecoderInputs.of(bundle.manifest).media is not None
    except RequestError:  # it does not generate
        return False


def transcripts(bundle: Bundle, session: Session, rows: Sequence[Row], options: SpeechOptions) -> Iterator[Transcript]:
    """Yield the text of the file of each row; errors as of `Transcriber.write`."""
    transcriber = bundle.transcriber(session)
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        files, adapters = [str(row.asked) for row in part], [row.adapter for row in part]
        yield from transcriber.write(files, adapters=adapters, **vars(options))


def show_transcripts(rows: Iterable[Transcript], screen: Screen, *, many: bool) -> None:
    """Print the text of a single file, or the texts of several under their names."""
    if many:
        for row in rows:
            screen.write(f"{json.dumps(row.document(), ensure_ascii=False)}\n")
        return
    done = list(rows)
    for row in done:
        if len(done) > 1:
            screen.line((f"{row.file} ", "bold"), (f"[{row.adapter or 'base'}]", "dim"))
        lines = [row.text]
        if row.segments is not None:
            lines = [f"{segment.start:.2f} – {segment.end:.2f}  {segment.text}" for segment in row.segments]
        screen.write("".join(f"{line}\n" for line in lines))
        if row.finish == "length":
            screen.report(f"the text of {row.file} reached the most tokens that the model writes")
