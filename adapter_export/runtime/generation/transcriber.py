"""Texts of sound: files become windows by the steps of the bundle, and a decoder writes the text of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_export.decoding import Decoding
from adapter_export.errors import RequestError, within
from adapter_export.format.media import MediaRecord
from adapter_export.graph.tasks.asked import named_adapter
from adapter_export.modalities.modality import MediaFile, Step
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import Finish, WrittenRow
from adapter_export.runtime.generation.speech_prompt import SpeechPrompt, speech_prompt
from adapter_export.runtime.generation.speech_times import Clock, Segment, TimeRule
from adapter_export.runtime.generation.text_writer import OpenText
from adapter_export.tables import Described
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.text import Tokenizer

_MOST_WINDOWS = 240
"""Maximum length of a file, in windows: two hours of Whisper's."""


@dataclass(frozen=True)
class SpeechOptions:
    """Options of the text of a file.

    Attributes:
        language: the code of the language, such as `en`; `None` for that of the model, which usually detects it.
        task: `transcribe`, or `translate` into English; `None` for that of the model.
        timestamps: whether the model writes the times of segments. It does for a file longer than a window, too.
        decoding: the options for each window; `None` is greedy, as long as the model can write.
    """

    language: str | None = None
    task: str | None = None
    timestamps: bool = False
    decoding: Decoding | None = None


@dataclass(frozen=True)
class TextSegment:
    """A segment of a text, with its characters.

    Attributes:
        start: in seconds.
        end: in seconds.
        text: the characters.
    """

    start: float
    end: float
    text: str


@dataclass(frozen=True, repr=False)
class Transcript(Described):
    """The text of a file.

    Attributes:
        file: the path of the file, or its place among the files.
        adapter: the adapter that wrote it; `None` is the base.
        text: the text, without special tokens and times.
        tokens: its tokens.
        finish: `end` for a token that ends texts, `length` for a limit.
        language: the code of the language that was chosen or detected; `None` for a model without a choice.
        seconds: the length of the sound; `None` for a file without a sampling rate.
        segments: the parts of the text by time; `None` for a text without times.
    """

    file: str
    adapter: str | None
    text: str
    tokens: tuple[int, ...]
    finish: Finish
    language: str | None
    seconds: float | None
    segments: tuple[TextSegment, ...] | None = None

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return self.document()

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        segments = self.segments
        return {
            "file": self.file,
            "adapter": self.adapter,
            "text": self.text,
            "tokens": list(self.tokens),
            "finish": self.finish,
            "language": self.language,
            "seconds": self.seconds,
        } | ({} if segments is None else {"segments": [dict(vars(segment)) for segment in segments]})


@dataclass
class OpenTranscript:
    """The text of a file while it is written, window by window.

    Attributes:
        file: as in `Transcript`.
        adapter: as in `Transcript`.
        seconds: as in `Transcript`.
        features: the input of the encoder for the whole file, [bands, frames].
        width: frames of a window.
        prompt: the tokens that the decoder reads before a text; after the first window, with a detected language.
        clock: the times of a window; `None` for a text without times, of a single window.
        tokens: the tokens written so far.
        segments: the segments written so far.
        finish: the reason for the end of the text so far; `None` before the first window.
        seek: the first frame of the next window.
    """

    file: str
    adapter: str | None
    seconds: float | None
    features: np.ndarray
    width: int
    prompt: SpeechPrompt
    clock: Clock | None
    tokens: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    finish: Finish | None = None
    seek: int = 0

    @property
    def is_done(self) -> bool:
        """True if every window is written."""
        return bool(self.seek >= self.features.shape[-1])

    @property
    def window(self) -> np.ndarray:
        """The next window; behind the end of the sound it has zeros, as in transformers."""
        part = self.features[..., self.seek : self.seek + self.width]
        return np.pad(part, [*[(0, 0)] * (part.ndim - 1), (0, self.width - part.shape[-1])])

    def take(self, row: WrittenRow, first_time: int | None) -> None:
        """Take up the text of a window.

        Raises:
            RequestError: the model wrote times in a text without times, or the window has no end.
        """
        assert row.finish is not None
        self.prompt = SpeechPrompt(tuple(row.prompt))
        self.finish = "length" if "length" in (self.finish, row.finish) else row.finish
        length = min(self.width, self.features.shape[-1] - self.seek)
        if self.clock is None:
            _check_no_times(row.tokens, first_time, self.file)
            self.tokens, self.seek = row.tokens, self.features.shape[-1]
            return
        segments, after = self.clock.segments(row.tokens, self.seek, length)
        if after <= 0:
            raise RequestError("the model finds no segment that ends after its start", where=self.file)
        self.segments += segments
        self.tokens += [token for segment in segments for token in segment.tokens]
        self.seek += after


class Transcriber:
    """Writes the texts of files; made by `Bundle.transcriber`.

    Args:
        decoder: generates tokens.
        media: the steps from a file to the encoder's input.
        tokenizer: of the bundle; `None` writes tokens only.
        ends: tokens that end a text.
    """

    def __init__(
        self, decoder: Decoder, media: MediaRecord, tokenizer: Tokenizer | None, ends: Collection[int]
    ) -> None:
        self._decoder, self._media, self._tokenizer, self._ends = decoder, media, tokenizer, ends
        speech = decoder.record.speech
        self._first_time = None if speech is None else speech.timestamps

    def write(
        self,
        files: Sequence[MediaFile],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        language: str | None = None,
        task: str | None = None,
        timestamps: bool = False,
        decoding: Decoding | None = None,
    ) -> list[Transcript]:
        """Write the text of each file.

        A file longer than a window is written in windows, each from the last time that the model wrote, as in
        transformers.

        Args:
            files: paths, bytes of files, or samples as float32 arrays.
            adapter: the adapter of all files, or `base`; required if the bundle has adapters.
            adapters: one adapter for each file instead; `None` is the base. In a bundle with the graph `bank` they
                share calls.
            language: the code of the language, such as `en`. Default: that of the model, which usually detects it.
            task: `transcribe`, or `translate` into English. Default: that of the model.
            timestamps: let the model write times, and return segments.
            decoding: the options of each window. Default: greedy, as long as the model can write.

        Raises:
            UsageError: no adapter is named.
            RequestError: there are no files, or one is too long; an adapter is not loaded; or the model has no token
                for the language, the task or times.
            FileError, DataError: a file cannot be read.
        """
        known = dict.fromkeys(self._decoder.session.adapters, True)
        if adapters is None:
            adapters = [named_adapter(adapter, known, None)] * len(files)
        elif not isinstance(adapters, str):
            adapters = [name and named_adapter(name, known, None) for name in adapters]
        opened = self.opened(files, adapters, SpeechOptions(language, task, timestamps, decoding))
        self.write_windows(opened, decoding)
        return [self.transcript(one) for one in opened]

    def opened(
        self, files: Sequence[MediaFile], adapters: Sequence[str | None], options: SpeechOptions
    ) -> list[OpenTranscript]:
        """Return texts of which nothing is written yet; errors as of `write`."""
        if isinstance(files, str | bytes) or not len(files):
            raise RequestError("there are no files", found=type(files).__name__, expected="a list of files")
        if isinstance(adapters, str) or len(adapters) != len(files):
            raise RequestError("there is not one adapter for each file", found=repr(adapters), expected=f"{len(files)}")
        if options.decoding is not None and options.decoding.json_schema is not None:
            raise RequestError("texts of files follow no JSON schema", fix="remove " + argument("json_schema"))
        names = [f"file {at}" if isinstance(file, bytes | np.ndarray) else str(file) for at, file in enumerate(files)]
        rows = zip(files, names, adapters, strict=True)
        return [self._opened(file, name, adapter, options) for file, name, adapter in rows]

    def write_windows(self, opened: Sequence[OpenTranscript], decoding: Decoding | None) -> None:
        """Write all windows of files; those of several files share calls."""
        going = [one for one in opened if not one.is_done]
        while going:
            rows = [self.row(one, at, decoding) for at, one in enumerate(going)]
            for _ in self._decoder.write_rows(rows):
                pass
            for one, row in zip(going, rows, strict=True):
                one.take(row, self._first_time)
            going = [one for one in going if not one.is_done]

    def row(self, opened: OpenTranscript, place: int, decoding: Decoding | None) -> WrittenRow:
        """Return the row of the next window of a file."""
        speech = self._decoder.record.speech
        limits = [self._decoder.inputs.longest, None if speech is None else speech.most_tokens]
        known = [limit for limit in limits if limit is not None]
        options = decoding or Decoding(max_new_tokens=min(known, default=Decoding.max_new_tokens))
        rule = None if opened.clock is None else TimeRule.of(self._decoder.record)
        row = self._decoder.file_row(opened.window, opened.prompt, opened.adapter, options, self._ends)
        row.place, row.times = place, rule
        return row

    def open_text(self, row: WrittenRow) -> OpenText:
        """Return the characters of the text of a window while it is written; the bundle has a tokenizer."""
        assert self._tokenizer is not None
        return OpenText(self._tokenizer, "", row)

    def take(self, opened: OpenTranscript, row: WrittenRow) -> None:
        """Take up the text of a window; errors as of `OpenTranscript.take`."""
        opened.take(row, self._first_time)

    def transcript(self, opened: OpenTranscript) -> Transcript:
        """Return the text of a file whose windows are written."""
        assert opened.finish is not None
        speech = self._decoder.record.speech
        codes = {} if speech is None else {token: code for code, token in speech.languages.items()}
        segments = None
        if opened.clock is not None:
            segments = tuple(TextSegment(one.start, one.end, self._text(one.tokens)) for one in opened.segments)
        return Transcript(
            opened.file,
            opened.adapter,
            self._text(opened.tokens),
            tuple(opened.tokens),
            opened.finish,
            next((codes[token] for token in opened.prompt.read if token in codes), None),
            opened.seconds,
            segments,
        )

    def _text(self, tokens: Sequence[int]) -> str:
        if self._tokenizer is None:
            return ""
        decoded, first = self._tokenizer.decoding(), self._first_time
        return "".join(decoded(token) for token in tokens if first is None or token < first).strip()

    def _opened(self, file: MediaFile, name: str, adapter: str | None, options: SpeechOptions) -> OpenTranscript:
        """Read a file, as one window or, if it is longer, as a whole."""
        media, inputs = self._media, self._decoder.inputs
        assert inputs.media is not None
        steps: Sequence[Step] = media.steps or ()
        width = int(inputs.media.axes[-1])
        limit, rate = media.modality.limit(steps), media.sampling_rate
        with within(name):
            size = media.size(file, name)
            is_long = limit is not None and size > limit
            if is_long:
                self._check_long(size, limit or size, rate)
                steps = media.modality.without_limit(steps)
            contents = media.modality.contents(file, rate, name)
            clock = self._clock(limit, rate, width) if is_long or options.timestamps else None
            features = media.modality.apply(contents, steps)
        prompt = speech_prompt(self._decoder.record, options.language, options.task)
        if clock is not None:
            prompt = _with_times(prompt, clock.first - 1)
        return OpenTranscript(name, adapter, None if rate is None else size / rate, features, width, prompt, clock)

    def _check_long(self, size: int, limit: int, rate: int | None) -> None:
        """Refuse a file that cannot be written in windows, since a part would be missing in its text."""
        unit = 1 if rate is None else rate
        if self._first_time is None:
            raise RequestError(
                "is longer than the window of the model, which writes no times to go on from",
                found=f"{size / unit:.1f} s",
                expected=f"at most {limit / unit:g} s",
                fix="split it at pauses, and send the parts as files",
            )
        if size > _MOST_WINDOWS * limit:
            raise RequestError(
                "is too long",
                found=f"{size / unit:,.0f} s",
                expected=f"at most {_MOST_WINDOWS * limit / unit:,.0f} s",
                fix="split it at pauses, and send the parts as files",
            )

    def _clock(self, limit: int | None, rate: int | None, width: int) -> Clock:
        rule, states = TimeRule.of(self._decoder.record), self._decoder.inputs.states
        if limit is None or rate is None or not states or width % states:
            raise RequestError("the model writes no timestamps", found="windows without a length in seconds")
        return Clock(rule.first, limit / rate / states, width // states)


def transcriber_of(
    decoder: Decoder, media: MediaRecord | None, tokenizer: Tokenizer | None, where: object
) -> Transcriber:
    """Return the generator of the texts of files; RequestError if a bundle writes none, or cannot read files."""
    if decoder.inputs.media is None or media is None or media.steps is None:
        raise RequestError(
            "the bundle does not write the texts of files",
            where=where,
            found="a generator of texts from prompts" if decoder.inputs.media is None else "no known preprocessing",
            fix="capture a speech model such as Whisper with its processor, and build again",
        )
    return Transcriber(decoder, media, tokenizer, decoder.record.end)


def _with_times(prompt: SpeechPrompt, never: int) -> SpeechPrompt:
    """Return a prompt without the token for texts without times."""
    if prompt.languages:
        return replace(prompt, forced=tuple(token for token in prompt.forced if token != never))
    return replace(prompt, read=tuple(token for token in prompt.read if token != never))


def _check_no_times(tokens: Sequence[int], first: int | None, where: str) -> None:
    """Raise RequestError for a text with two times in a row, by which transformers would read the sound again."""
    are = [first is not None and token >= first for token in tokens]
    if any(one and other for one, other in pairwise(are)):
        raise RequestError(
            "the model wrote timestamps in a text without timestamps",
            where=where,
            expected="a text without two timestamps in a row; transformers reads the sound again from there",
            fix="pass " + argument("timestamps", True),
        )
