"""Times in the text of speech: which tokens may follow, and the segments that pairs of times mark.

Both are those of Whisper (Radford et al. 2022, §3.8), as `generate` of transformers implements them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.format.generation import GenerationRecord


@dataclass(frozen=True)
class TimeRule:
    """Restricts the next token of a text with times.

    Attributes:
        first: the first of the tokens that are times.
        never: the token for texts without times.
        end: the token that ends a text; those below it are text.
        latest: how many times after `first` the first segment may begin; `None` for all.
    """

    first: int
    never: int
    end: int
    latest: int | None

    @classmethod
    def of(cls, record: GenerationRecord) -> TimeRule:
        """Return the rule of a bundle; RequestError if its model writes no times."""
        speech = record.speech
        if speech is None or speech.timestamps is None or len(record.end) != 1:
            raise RequestError("the model writes no timestamps", fix="leave them out, and send files of one window")
        return cls(speech.timestamps, speech.timestamps - 1, record.end[0], speech.latest_start)

    def restricted(self, logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
        """Return logits [words] of the next token after some tokens, with -inf for those that may not follow."""
        allowed = logits.copy()
        allowed[self.never] = -np.inf
        last = bool(tokens) and tokens[-1] >= self.first
        before = len(tokens) < 2 or tokens[-2] >= self.first
        if last:  # times have pairs, except before the end
            allowed[self.first :] = -np.inf if before else allowed[self.first :]
            allowed[: self.end] = allowed[: self.end] if before else -np.inf
        times = [token for token in tokens if token >= self.first]
        if times:  # they do not decrease, and a segment has a length
            allowed[self.first : times[-1] + (0 if last and not before else 1)] = -np.inf
        if not tokens:
            allowed[: self.first] = -np.inf
            if self.latest is not None:
                allowed[self.first + self.latest + 1 :] = -np.inf
        text, time = allowed[: self.first], allowed[self.first :]
        # a time follows if all of them together are more likely than any other token
        if time.size and np.logaddexp.reduce(time.astype(np.float64)) > text.max(initial=-np.inf):
            text[:] = -np.inf
        return allowed


@dataclass(frozen=True)
class Segment:
    """A part of a text between two times.

    Attributes:
        start: in seconds, from the start of the file.
        end: in seconds, from the start of the file.
        tokens: its tokens, with those that are times.
    """

    start: float
    end: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Clock:
    """Times of a window.

    Attributes:
        first: the first of the tokens that are times.
        step: seconds between two times.
        frames: frames of the input for each step.
    """

    first: int
    step: float
    frames: int

    def segments(self, tokens: Sequence[int], seek: int, length: int) -> tuple[list[Segment], int]:
        """Return the segments of the text of a window, and the frames after which the next window begins.

        Args:
            tokens: the text, without the token that ends it.
            seek: the first frame of the window.
            length: the frames of the window.
        """
        offset = seek * self.step / self.frames
        are = [token >= self.first for token in tokens]
        ends = [at + 1 for at, both in enumerate(pairwise(are)) if all(both)]
        if not ends:
            times = [token for token in tokens if token >= self.first]
            last = int(length / self.frames)
            if times and times[-1] != self.first:
                last = times[-1] - self.first
            return [Segment(offset, offset + last * self.step, tuple(tokens))], length
        is_single = are[-2:] == [False, True]
        if is_single:
            ends.append(len(tokens))
        else:  # the last time belongs to the last segment
            ends[-1] += 1
        segments, start = list[Segment](), 0
        for at, end in enumerate(ends):
            part = tokens[start:end]
            last = part[-1] if at < len(ends) - 1 or is_single else part[-2]
            from_time, to_time = (offset + (token - self.first) * self.step for token in (part[0], last))
            segments.append(Segment(from_time, to_time, tuple(part)))
            start = end
        # a single time at the end means that no speech follows
        return segments, length if is_single else (tokens[start - 2] - self.first) * self.frames
