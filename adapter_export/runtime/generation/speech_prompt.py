"""Tokens that a decoder of speech reads before a text: those of its language and its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from adapter_export.errors import RequestError
from adapter_export.format.generation import GenerationRecord
from adapter_export.words import argument, quoted


@dataclass(frozen=True)
class SpeechPrompt:
    """Tokens that a decoder reads before the text of a file.

    Attributes:
        read: the first ones.
        languages: tokens of which the model then chooses the most likely; empty if the language is known.
        forced: the tokens behind that one.
    """

    read: tuple[int, ...]
    languages: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()


def speech_prompt(record: GenerationRecord, language: str | None = None, task: str | None = None) -> SpeechPrompt:
    """Return the prompt for a language and a task, as `generate` of transformers makes it.

    Raises:
        RequestError: the model has no token for the language or the task.
    """
    assert record.start is not None  # checked when the decoder was opened
    speech = record.speech
    for name, value, known in (
        ("language", language, {} if speech is None else speech.languages),
        ("task", task, {} if speech is None else speech.tasks),
    ):
        if value is not None and value not in known:
            expected = quoted(sorted(known)) if known else "a model with a choice"
            what = f"the model has no token for this {name}"
            raise RequestError(what, where=argument(name), found=f"`{value}`", expected=expected)
    tokens = () if speech is None else speech.chosen(language, task)
    if None not in tokens:
        return SpeechPrompt((record.start, *(token for token in tokens if token is not None)))
    assert speech is not None
    at = tokens.index(None)
    before, behind = tokens[:at], tokens[at + 1 :]
    return SpeechPrompt((record.start, *_known(before)), tuple(speech.languages.values()), _known(behind))


def speech_prompts(record: GenerationRecord) -> list[list[int]]:
    """Return whole prompts for a few languages and tasks, for golden texts."""
    speech = record.speech
    languages = [] if speech is None else sorted(speech.languages)
    tasks = [] if speech is None else sorted(speech.tasks)
    choices = [(None, None), *product(languages[:1] + languages[1:][-1:], [None, *tasks])]
    prompts = []
    for choice in choices:
        prompt = speech_prompt(record, *choice)
        prompts.append([*prompt.read, *sorted(prompt.languages)[:1], *prompt.forced])
    return prompts


def _known(tokens: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(token for token in tokens if token is not None)
