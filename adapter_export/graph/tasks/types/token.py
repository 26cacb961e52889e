"""A label for each token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_export.errors import DataError
from adapter_export.graph.tasks.answers import (
    Prediction,
    ReadText,
    ShownRow,
    TextAnswer,
    Token,
    TokenLabels,
    prediction,
)
from adapter_export.graph.tasks.cells import Cells, Found, labels, words
from adapter_export.graph.tasks.labels import balanced_classes, class_indices, label_names, ranked
from adapter_export.graph.tasks.task_type import Mask, Measured, TaskType
from adapter_export.tables import Table, number_of, probability_cells, verb_for
from adapter_export.text import Pair

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.graph.tasks.task_record import Task


class TokenType(TaskType):
    """A label for each token; of words in data, the first token of each has its label."""

    name = "token"
    output = "token_logits"
    pools = False
    has_labels = implied = True
    pairs = "never"
    method = "classify_tokens"
    pipeline = "token-classification"
    model_classes = ("ForTokenClassification",)
    peft_type = "TOKEN_CLS"
    adapterhub_heads = ("tagging",)

    def read(self, cells: Cells) -> Found:
        """Return the words of a row and a label for each."""
        words_found, learnt = words(cells.text, cells.where), labels(cells.label, cells.where)
        if words_found is not None and learnt is not None and len(words_found) != len(learnt):
            raise DataError(
                "words and labels differ in number",
                where=cells.where,
                found=f"{number_of(len(words_found), 'word')} and {number_of(len(learnt), 'label')}",
                expected="a label for each word",
            )
        return cells.complete(words_found, None, learnt)

    def labels_of(self, answer: Any) -> Iterable[str]:
        """Return the labels of the words."""
        return tuple(answer)

    def label_names(self, answers: Sequence[Any], where: str, *, split: bool) -> tuple[str, ...]:  # noqa: ARG002
        """Return the labels of all words."""
        return label_names([label for row in answers for label in row], where, rows=1)

    def encode(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:
        """Return for each row the classes of its words [words]."""
        return [class_indices(row, labels, where) for row in answers]

    def class_weights(self, answers: Any, count: int) -> np.ndarray:
        """Return weights inversely proportional to the words of each class."""
        return balanced_classes(np.concatenate(answers), count)

    def answer(self, task: Task, result: np.ndarray, real: Mask, context: Mask | None) -> TokenLabels:  # noqa: ARG002
        """Return the most probable class of each token; `None` for padding."""
        pairs = zip(result, real, strict=True)
        return TokenLabels(tuple(prediction(logits, task.labels) if keep else None for logits, keep in pairs))

    def answer_text(self, read: ReadText, task: Task, results: Sequence[np.ndarray]) -> TextAnswer:
        """Return the label of each token that is not special, from the window in which it is farthest from an edge."""
        tokens, logits = window_tokens(read, results)
        if not tokens:
            return TextAnswer(TokenLabels(()), read.cut, read.windows)
        return TextAnswer(task.answer(np.stack(logits)), read.cut, read.windows, tuple(tokens))

    def is_decided(self, task: Task, result: np.ndarray, absolute: float, context: Mask | None) -> bool:  # noqa: ARG002
        """Return true if the largest logit of each token leads by more than twice the allowed deviation."""
        return ranked(result, absolute)

    def metrics(self, labels: Sequence[str]) -> tuple[Metric, ...]:
        """Return macro-F1 and accuracy; of entities, such as `B-PER`, those of whole entities first."""
        from adapter_export.graph.tasks.metrics import ENTITIES, TAGS, has_entities

        return ENTITIES if has_entities(labels) else TAGS

    def measured(self, read: Sequence[ReadText], results: Sequence[Sequence[np.ndarray]], right: Any) -> Measured:
        """Return the logits [words, classes] of the first token of each word; a word that was cut is left out."""
        means, answers = [], []
        for text, logits_of_row, row in zip(read, results, right, strict=True):
            of_word: dict[int, np.ndarray] = {}
            for token, logits in zip(*window_tokens(text, logits_of_row), strict=True):
                if token.word is not None:
                    of_word.setdefault(token.word, logits)
            means.append(np.array([*of_word.values()]).reshape(-1, logits_of_row[0].shape[-1]))
            answers.append(np.asarray(row)[[*of_word]])
        lost = sum(map(len, right)) - sum(map(len, answers))
        notes = (f"{number_of(lost, 'truncated word')} {verb_for(lost, 'were')} skipped",) if lost else ()
        return Measured(means, answers, notes=notes)

    def judge(self, task: Task, rows: Measured) -> Judged:
        """Judge logits [words, classes] of each row by the classes of its words."""
        from adapter_export.graph.tasks.metrics import judge_tags

        shares = [task.activated(result) for result in rows.results]
        return judge_tags([row.argmax(-1) for row in shares], rows.right, task.labels, [row.max(-1) for row in shares])

    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return each token with its label."""
        return " ".join(f"{token}/{answer.label}" for token, answer in _labelled(row)), "", ""

    def tables(self, rows: Sequence[ShownRow]) -> Iterator[Table | str]:
        """Yield the tokens of each row."""
        for row in rows:
            cells = [(token, answer.label, *probability_cells(answer.probability)) for token, answer in _labelled(row)]
            yield row.name
            yield Table(("token", "label", "probability", ""), cells, numbers="llr")


def window_tokens(
    read: ReadText, results: Sequence[np.ndarray], *, special: bool = False
) -> tuple[list[Token], list[np.ndarray]]:
    """Return the tokens of a text and the result of each, from its best window; special tokens only if `special`."""
    best: dict[int, tuple[int, int, int]] = {}
    for at, row in enumerate(read.rows):
        places, hidden = row.places or range(len(row.encoding.ids)), row.encoding.special_tokens_mask
        margins = row.margins or [0] * len(hidden)
        for token, place in enumerate(places):
            if special or not hidden[token]:
                best[place] = max(best.get(place, (-1, 0, 0)), (margins[token], -at, token))
    tokens, logits = [], []
    has_words = not isinstance(read.text, str | Pair)
    for place in sorted(best):
        _, at, token = best[place]
        encoding = read.rows[-at].encoding
        start, end = encoding.offsets[token]
        word = encoding.word_ids[token] if has_words else None
        tokens.append(Token(encoding.tokens[token], start, end, word, encoding.ids[token]))
        logits.append(results[-at][token])
    return tokens, logits


def _labelled(row: ShownRow) -> list[tuple[str, Prediction]]:
    """Return the tokens of a row, as the tokenizer writes them or by their places, with the class of each."""
    answer = row.text_answer.answer
    assert isinstance(answer, TokenLabels)
    names = [token.text for token in row.text_answer.tokens] or [
        f"token {place}" for place in range(len(answer.tokens))
    ]
    return [(name, label) for name, label in zip(names, answer.tokens, strict=True) if label is not None]


TYPE = TokenType()
