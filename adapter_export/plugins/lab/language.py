"""A language model in a bundle, measured on texts: perplexity, token accuracy and written answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.ablation import effects, note_of
from adapter_export.decoding import Decoding
from adapter_export.errors import DataError
from adapter_export.format.tabular.eval_data import EvalData
from adapter_export.format.tabular.labelled import LabelledRow
from adapter_export.format.tabular.table_faults import lines_of
from adapter_export.graph.tasks.metrics import Floats, Judged, Truths, judge_texts
from adapter_export.plugins.lab.seen_rows import SeenRows
from adapter_export.reporting import SILENT, Reporter
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoder_inputs import DecoderInputs
from adapter_export.runtime.generation.text_writer import TextWriter
from adapter_export.tables import number_of, verb_for
from adapter_export.text import Tokenizer

_AT_ONCE = 16
"""Prompts that are continued together."""

_SPARE = 8
"""Tokens that may be written beyond those of the longest answer: other tokens can spell the same text."""


@dataclass(frozen=True)
class Passage:
    """The tokens of a row: those that are given, and those that the model is measured on.

    Attributes:
        prompt: the prompt; of a text without one its first token.
        tokens: the answer, or the rest of the text, and the token that ends a text if the bundle records one.
        cut: the tokens beyond the limit of the base, which are left out.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    cut: int


@dataclass(frozen=True)
class MeasuredTexts:
    """A language model on the rows of a file.

    Attributes:
        adapter: the adapter; `None` is the base.
        judged: its metrics.
        seen: the rows that the adapter has learnt from; `None` if its record names no data.
        notes: facts that limit the meaning of the scores, each a clause.
    """

    adapter: str | None
    judged: Judged
    seen: SeenRows | None
    notes: tuple[str, ...]


def measure_texts(
    bundle: OpenedBundle,
    adapter: str | None,
    data: EvalData,
    stop: Sequence[str] = (),
    reporter: Reporter = SILENT,
) -> MeasuredTexts:
    """Compute the loss of each token of texts or answers, and write the answers to prompts.

    Every row is computed in calls of its own; answers are written as `TextWriter` writes them: the likeliest token each
    time, up to a few tokens more than the longest answer has.

    Args:
        bundle: the bundle.
        adapter: the adapter; `None` is the base.
        data: texts, or prompts and answers.
        stop: texts that end an answer.
        reporter: receives the number of rows.

    Raises:
        RequestError: the bundle does not generate, or has no tokenizer.
        DataError: a text has no token to predict, or a logit is NaN or infinite.
    """
    session = bundle.runtime_session()
    writer, decoder, tokenizer = bundle.bundle.writer(session), session.decoder, bundle.bundle.tokenizer()
    record = bundle.manifest.generation
    end = record.end[0] if record is not None and record.end else min(writer.ends, default=None)
    passages = read_passages(data.rows, tokenizer, end, decoder.inputs)
    losses, right = list[Floats](), list[Truths]()
    for count, (row, passage) in enumerate(zip(data.rows, passages, strict=True), 1):
        loss, hits = _measured(decoder, passage, adapter, f"line {row.line}")
        losses.append(loss)
        right.append(hits)
        reporter.step("measuring the tokens", count, len(passages))
    written = None
    if data.rows[0].pair is not None:
        written = _written(writer, data.rows, passages, adapter, stop, reporter)
    judged = judge_texts(losses, right, written, [str(row.text if row.pair is None else row.pair) for row in data.rows])
    source = None if adapter is None else bundle.source(adapter)
    seen = None if source is None else SeenRows.of(source.training, data, compared=False)
    notes = [*_notes(data.rows, passages, end, decoder.inputs.longest)]
    if seen is not None and adapter is not None:
        notes = [*seen.notes(adapter), *notes]
    if adapter is not None:
        notes += filter(None, map(note_of, effects(bundle, [adapter])))
    return MeasuredTexts(adapter, judged, seen, tuple(notes))


def read_passages(
    rows: Sequence[LabelledRow], tokenizer: Tokenizer, end: int | None, inputs: DecoderInputs
) -> list[Passage]:
    """Return the tokens of rows as `train --task causal_lm` makes them, cut at the limit of the base.

    Args:
        rows: texts, or prompts and answers (`pair`).
        tokenizer: of the bundle; it adds its special tokens to texts and prompts.
        end: the token that ends a text; `None` if it is unknown.
        inputs: the limits of the base.

    Raises:
        DataError: no token is left to predict.
    """
    first = [encoding.ids for encoding in tokenizer.whole([str(row.text) for row in rows])]
    if rows[0].pair is None:
        if inputs.source is not None:
            raise DataError(
                "an encoder-decoder is measured on prompts and answers",
                found="texts without answers",
                fix="name the columns of both",
            )
        whole = [[*ids, *([end] if end is not None and ids[-1:] != [end] else [])] for ids in first]
        parts = [(ids[:1], ids[1:]) for ids in whole]
    else:
        answers = [
            [number for number, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not special]
            for encoding in tokenizer.whole([str(row.pair) for row in rows])
        ]
        reads = inputs.source is not None  # an encoder reads the token that ends a text
        prompts = [ids if reads or end is None or ids[-1:] != [end] else ids[:-1] for ids in first]
        parts = [
            (ids, [*answer, *([] if end is None else [end])]) for ids, answer in zip(prompts, answers, strict=True)
        ]
    passages = []
    for row, (prompt, tokens) in zip(rows, parts, strict=True):
        used = 1 if inputs.source is not None else len(prompt)
        room = len(tokens) if inputs.longest is None else max(0, inputs.longest - used)
        if not prompt or not tokens[:room]:
            raise DataError(
                "leaves no token to predict",
                where=f"line {row.line}",
                found=f"{number_of(len(prompt), 'token')} of a prompt, {len(tokens)} to predict",
                expected="at least one of each" if inputs.longest is None else f"at most {inputs.longest} in all",
                fix="leave the row out",
            )
        passages.append(Passage(tuple(prompt), tuple(tokens[:room]), len(tokens[room:])))
    return passages


def _measured(decoder: Decoder, passage: Passage, adapter: str | None, where: str) -> tuple[Floats, Truths]:
    """Return the cross-entropy of each token in nats [tokens], and whether it is the likeliest."""
    losses, right, done = list[Floats](), list[Truths](), 0
    for logits in decoder.logits(passage.prompt, passage.tokens, adapter):
        if not np.isfinite(logits).all():
            raise DataError("a logit is NaN or infinite", where=where, fix="run `verify` on the bundle")
        places, tokens = np.arange(len(logits)), np.array(passage.tokens[done : done + len(logits)])
        wide = logits.astype(np.float64)
        losses.append(logsumexp(wide, axis=-1) - wide[places, tokens])
        right.append(logits.argmax(-1) == tokens)
        done += len(logits)
    return np.concatenate(losses), np.concatenate(right)


def _written(
    writer: TextWriter,
    rows: Sequence[LabelledRow],
    passages: Sequence[Passage],
    adapter: str | None,
    stop: Sequence[str],
    reporter: Reporter,
) -> list[str]:
    """Return the text that is written after each prompt."""
    decoding = Decoding(max(len(passage.tokens) for passage in passages) + _SPARE, stop=stop)
    texts = list[str]()
    for start in range(0, len(rows), _AT_ONCE):
        prompts = [str(row.text) for row in rows[start : start + _AT_ONCE]]
        texts += [answer.text for answer in writer.write(prompts, adapters=[adapter] * len(prompts), decoding=decoding)]
        reporter.step("writing the answers", len(texts), len(rows))
    return texts


def _notes(
    rows: Sequence[LabelledRow], passages: Sequence[Passage], end: int | None, longest: int | None
) -> Iterator[str]:
    cut = [row.line for row, passage in zip(rows, passages, strict=True) if passage.cut]
    if cut:
        tokens = sum(passage.cut for passage in passages)
        yield (
            f"{number_of(len(cut), 'text')} {verb_for(len(cut), 'are')} longer than {longest} tokens and cut there "
            f"({lines_of(cut)}): {number_of(tokens, 'token')} not measured"
        )
    if end is None:
        yield "the token that ends a text is unknown, so it is not measured"
