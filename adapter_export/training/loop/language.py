"""Texts for training a causal language model: each token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.errors import BaseModelError, DataError, RequestError, UsageError
from adapter_export.format.manifest import InputRecord
from adapter_export.format.tabular.conversations import Conversation
from adapter_export.format.tabular.language_tables import LanguageTables, WrittenText
from adapter_export.format.tabular.table_faults import rows_that, skipped
from adapter_export.graph.tasks import CAUSAL_LM, Learnt
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import number_of, verb_for
from adapter_export.text import Tokenizer
from adapter_export.torch_backend.attach import AdaptedModel
from adapter_export.training.loop.chat_passages import ChatEncoder, ChatTokens
from adapter_export.training.loop.data import Call, Rows, digest_of, split_groups
from adapter_export.training.loop.task_files import TextTask
from adapter_export.words import argument, quoted

_TYPES = "token_type_ids"
"""An input that is 0 for a single text."""

_CHUNK = 256


@dataclass(frozen=True)
class Passage:
    """A row of tokens.

    Attributes:
        ids: the tokens.
        start: the tokens from here on are training targets, each predicted from all before it.
        learnt: whether each token is a target, if not all from `start` on are.
    """

    ids: tuple[int, ...]
    start: int = 1
    learnt: tuple[bool, ...] | None = None

    @property
    def targets(self) -> np.ndarray:
        """Mask of the training targets [tokens]; the first token is never one."""
        places = np.arange(len(self.ids)) >= max(1, self.start)
        return places if self.learnt is None else places & np.array(self.learnt, bool)


@dataclass(frozen=True)
class LanguageExamples:
    """Rows of tokens for a causal language model; a batch is right-padded to its longest row.

    Attributes:
        texts: the rows.
        records: the base's inputs; caches are empty.
        tokenizer: made the tokens.
        highest: highest token id, by input.
        problem: `causal_lm`.
    """

    texts: Sequence[Passage]
    records: tuple[InputRecord, ...]
    tokenizer: Tokenizer
    problem: Learnt = CAUSAL_LM

    @cached_property
    def lengths(self) -> Rows:
        """Number of tokens of each row."""
        return np.array([len(row.ids) for row in self.texts], np.int64)

    @property
    def highest(self) -> dict[str, int]:
        """Highest token id, by the input that takes ids."""
        most = max(max(row.ids) for row in self.texts)
        return {record.name: most for record in self.records if record.role == "ids" and record.name != _TYPES}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the rows; a run resumes only if it is equal."""
        return digest_of([np.array([*row.targets, *row.ids], np.int64).tobytes() for row in self.texts])

    def only(self, rows: Rows) -> LanguageExamples:
        """Return some of the rows, in the given order."""
        return replace(self, texts=[self.texts[row] for row in rows])

    def calls(self, rows: Rows, *, pads: bool) -> Iterator[Call]:  # noqa: ARG002 — padding comes later
        """Yield some rows in one call: a causal model reads no later tokens, so it ignores padding (`check_causal`)."""
        yield Call(self.inputs(rows), np.arange(len(rows)))

    def positions(self, rows: Rows) -> int:
        """Return the tokens of some rows, with padding."""
        return len(rows) * int(self.lengths[rows].max())

    def inputs(self, rows: Rows) -> dict[str, Tensor]:
        """Return the base's inputs for some rows, by name: tokens and mask [rows, tokens], and caches of length 0."""
        ids = self._ids(rows)
        real = torch.arange(ids.shape[1]) < torch.from_numpy(self.lengths[rows])[:, None]
        by_role = {"ids": ids, "mask": real}
        inputs = {}
        for record in self.records:
            if record.role == "cache":
                lengths = (axis if isinstance(axis, int) else 0 for axis in record.axes[1:])
                inputs[record.name] = torch.zeros(len(rows), *lengths)
            else:
                value = ids * 0 if record.name == _TYPES else by_role[record.role]
                inputs[record.name] = value.to(getattr(torch, record.dtype))
        return inputs

    def matched(self, results: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return for each target token its loss and whether it is the top prediction [tokens, 2], and its id.

        Nothing of vocabulary size is kept of a batch.

        Args:
            results: logits of the next token [rows, tokens, vocabulary].
            rows: the rows that they belong to.
        """
        targets = [torch.from_numpy(self.texts[row].targets) for row in rows]
        learnt = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True)[:, 1:]
        ids = self._ids(rows)[:, 1:][learnt].to(results.device)
        logits = results[:, :-1][learnt.to(results.device)]
        losses = F.cross_entropy(logits, ids, reduction="none")
        return torch.stack([losses, (logits.argmax(-1) == ids).to(losses.dtype)], -1), ids

    def _ids(self, rows: Rows) -> Tensor:
        tokens = [torch.tensor(self.texts[row].ids) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)


@dataclass(frozen=True)
class Endings:
    """Settings for converting texts to rows of tokens.

    Attributes:
        end: token that ends each text; `None` if it is unknown.
        packed: whether to concatenate texts and cut them into rows, instead of truncating each.
        chat: returns the encoder of conversations.
        ends: tokens that end a text; a chat template should write one after each answer.
    """

    end: int | None
    packed: bool
    chat: Callable[[], ChatEncoder] | None = None
    ends: Collection[int] = ()


def read_language(
    tables: LanguageTables,
    tokenizer: Tokenizer,
    records: tuple[InputRecord, ...],
    endings: Endings,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> TextTask:
    """Split texts with the seed, and encode them; a prompt is on one side of the split only.

    The targets are the tokens of answers if there are prompts or conversations, otherwise all tokens.

    Raises:
        DataError: no token can be learned.
        UsageError: prompts and answers cannot be packed, or an end token is named for conversations.
        RequestError: the base has an input that text cannot fill.
    """
    by_role = [record.role for record in records if record.name != _TYPES]
    strange = [record.name for record in records if record.name != _TYPES and not _filled(record.role, by_role)]
    if strange:
        raise RequestError(
            "the base has inputs that cannot be computed from text",
            found=quoted(strange),
            expected="tokens, a mask, and caches",
        )
    files = tables.files
    sources: dict[str, Any] = {
        name: {
            "file": files.paths[name].name,
            "sha256": table.sha256,
            "rows": len(table.texts),
            "repeated_rows_left_out": len(table.repeated),
            "incomplete_rows_left_out": len(table.incomplete),
        }
        for name, table in tables.texts.items()
    }
    notes = [note for name, table in tables.texts.items() for note in table.remarks(name)]
    texts = {name: table.texts for name, table in tables.texts.items()}
    if isinstance(files.validation, float):
        whole = texts["training"]
        kept, held_out = split_groups(list(map(_group, whole)), files.validation, seed)
        texts |= {"training": [whole[row] for row in kept], "validation": [whole[row] for row in held_out]}
        sources["validation"] = {"fraction": files.validation, "rows": len(held_out), "of": "training"}
    if endings.end is None and not all(map(_are_conversations, texts.values())):
        notes.append(
            "the end-of-text token is unknown, so the model does not learn to stop; set " + argument("end_token")
        )
    parts = {}
    for name, written in texts.items():
        if _are_conversations(written):
            conversations = cast("Sequence[Conversation]", written)
            passages, said, sources[name]["chat_template"] = _conversation_passages(
                conversations, endings, tokenizer, name, reporter
            )
        else:
            passages, said = _text_passages(cast("Sequence[WrittenText]", written), endings, tokenizer, name)
        notes += said
        parts[name] = LanguageExamples(passages, records, tokenizer)
        counted = sources[name]["tokens_to_learn"] = sum(int(row.targets.sum()) for row in passages)
        if _are_conversations(written):
            sources[name]["tokens"] = total = sum(len(row.ids) for row in passages)
            notes.append(f"{counted:,} of {total:,} tokens of the {name} data are learned, those of the assistant")
    return TextTask(
        CAUSAL_LM,
        (),
        0,
        cast("Any", parts["training"]),
        cast("Any", parts["validation"]),
        cast("Any", parts.get("test")),
        sources,
        tuple(notes),
    )


def _filled(role: str, roles: Sequence[str]) -> bool:
    """Return whether the role of an input is clear: of two that index embeddings, one may be positions."""
    return role == "cache" or (role in ("ids", "mask") and roles.count(role) == 1)


def _group(text: WrittenText | Conversation) -> str:
    """Return what texts on one side of a split have in common."""
    return text.opening if isinstance(text, Conversation) else text[0]


def _are_conversations(texts: Sequence[object]) -> bool:
    return isinstance(texts[0], Conversation)


def _conversation_passages(
    texts: Sequence[Conversation], endings: Endings, tokenizer: Tokenizer, name: str, reporter: Reporter
) -> tuple[list[Passage], list[str], str]:
    """Return rows of tokens of conversations, notes, and the digest of the chat template, which ends the answers."""
    if endings.packed:
        raise _unpacked("conversations")
    assert endings.chat is not None
    encoder, limit, encoded = endings.chat(), tokenizer.max_tokens, list[ChatTokens]()
    try:
        for at, conversation in enumerate(texts):
            reporter.step(f"reading the {name} conversations", at, len(texts))
            encoded.append(encoder.encode(conversation))
    finally:
        encoder.close()
    whole = [Passage(chat.ids, 1, chat.learnt) for chat in encoded]
    rows = [Passage(row.ids[:limit], 1, (row.learnt or ())[:limit]) for row in whole]
    rows = [row for row in rows if row.targets.any()]
    if not rows:
        raise _nothing_learned(name, len(texts), limit)
    cut, notes = sum(len(row.ids) > limit for row in whole), list[str]()
    ended = {token for row in rows for token in np.array(row.ids)[row.targets].tolist()} & {*endings.ends}
    if endings.ends and not ended:
        notes.append("the chat template ends answers without an end token, so the model does not learn to stop")
    notes += _said(name, len(texts), rows, endings, limit, cut, len(texts) - len(rows), packs=False)
    return rows, notes, encoder.digest


def _text_passages(
    texts: Sequence[WrittenText], endings: Endings, tokenizer: Tokenizer, name: str
) -> tuple[list[Passage], list[str]]:
    """Return rows of tokens of texts, or of prompts and answers."""
    limit, end = tokenizer.max_tokens, () if endings.end is None else (endings.end,)
    first = [tuple(ids) for ids, _ in _marked([text for text, _ in texts], tokenizer)]
    if texts[0][1] is None:
        whole = [ids if ids[-1:] == end else (*ids, *end) for ids in first]
        if not endings.packed:
            cut = sum(len(ids) > limit for ids in whole)
            rows = [Passage(ids[:limit]) for ids in whole if len(ids) > 1]
            lost = len(whole) - len(rows)
        else:
            stream = [number for ids in whole for number in ids]
            rows = [Passage(tuple(stream[at : at + limit])) for at in range(0, len(stream) - 1, limit)]
            cut = lost = 0
        ended = False
    else:
        if endings.packed:
            raise _unpacked("prompts and answers")
        answers = [
            tuple(number for number, special in zip(ids, specials, strict=True) if not special)
            for ids, specials in _marked([str(answer) for _, answer in texts], tokenizer)
        ]
        ended = bool(end) and any(ids[-1:] == end for ids in first)
        # a prompt that ends with this token tells the model to stop
        prompts = [ids[:-1] if end and ids[-1:] == end else ids for ids in first]
        pairs = [((*prompt, *answer, *end), len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]
        rows = [Passage(ids[:limit], start) for ids, start in pairs if 0 < start < min(len(ids), limit)]
        cut, lost = sum(len(ids) > limit for ids, _ in pairs), len(pairs) - len(rows)
    if not rows:
        raise _nothing_learned(name, len(texts), limit)
    said = f"removed the end-of-text token from prompts of the {name} data, where it would prevent generation"
    return rows, [*[said] * ended, *_said(name, len(texts), rows, endings, limit, cut, lost, packs=texts[0][1] is None)]


def _unpacked(what: str) -> UsageError:
    reason = f"{what} cannot be packed: an answer would be conditioned on another prompt"
    return UsageError(reason, where=argument("packing", True), fix="remove it")


def _nothing_learned(name: str, texts: int, limit: int) -> DataError:
    return DataError(
        f"no token of the {name} data can be learned",
        found=f"{number_of(texts, 'text')}, truncated at {limit} tokens",
        expected="a text of two tokens, or a prompt that leaves room for its answer",
        fix="raise " + argument("max_tokens"),
    )


def _said(
    name: str, count: int, rows: Sequence[Passage], endings: Endings, limit: int, cut: int, lost: int, packs: bool
) -> Iterator[str]:
    if endings.packed:
        packed = f"packed into {number_of(len(rows), 'row')} of {limit} tokens"
        yield f"{number_of(count, 'text')} of the {name} data {verb_for(count, 'are')} {packed}"
    if cut:
        more = "; " + argument("packing", True) + " avoids truncation" if packs else ""
        yield f"{rows_that(cut, 'exceed', name, 'text')} {limit} tokens and {verb_for(cut, 'are')} truncated" + more
    if lost:
        yield f"{rows_that(lost, 'have', name, 'text')} no tokens to learn {skipped(lost)}"


def _marked(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Yield the tokens of texts of any length, including special tokens, and a mask of the special ones."""
    for start in range(0, len(texts), _CHUNK):
        for encoding in tokenizer.whole(texts[start : start + _CHUNK]):
            yield encoding.ids, encoding.special_tokens_mask


def check_causal(model: AdaptedModel, examples: LanguageExamples) -> None:
    """Reject a base or an adapter that reads tokens after a token, and could copy its target.

    Raises:
        BaseModelError: the logits of a token change with the last token.
    """
    row = next((row for row in examples.texts if len(row.ids) > 2 and len(set(row.ids)) > 1), None)
    if row is None:
        return
    other = replace(row, ids=(*row.ids[:-1], next(number for number in row.ids if number != row.ids[-1])))
    pair = replace(examples, texts=[row, other])
    with model.with_random_weights(), torch.inference_mode():
        one, two = model.result(model.placed(pair.inputs(np.arange(2))))[:, :-1].float()
    if not torch.allclose(one, two, rtol=0, atol=1e-3 * float(one.abs().max())):
        raise BaseModelError(
            "reads later tokens, so it cannot learn to predict them",
            found="logits of a token that depend on the last token of the text",
            expected="a causal language model",
            fix="capture one from its folder, and train an adapter without a gate",
        )
