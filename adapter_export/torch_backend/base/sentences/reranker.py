"""Rerankers that are language models: the score of a pair comes from two logits of the last token."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jinja2
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from adapter_export.errors import BaseModelError, UsageError
from adapter_export.format.model_config import score_activation
from adapter_export.graph.tasks import Task
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_text
from adapter_export.text import TOKENIZER_FILE, Tokenizer
from adapter_export.torch_backend.torch_lowering import pooling_operator
from adapter_export.words import argument, quoted

_SAMPLES = (("what is it?", "It is 5 o'clock.\n"), ("a", " b "), ("c\n", "d: e"))
"""Pairs whose tokens may merge with those of an adjacent prompt."""

_TOLERANCE = 1e-4
"""Tolerance of the score, as a fraction of the largest logit of the language head, in float32."""


@dataclass(frozen=True)
class Reranker:
    """Two tokens whose logits rate a pair as relevant or not.

    The score is the difference of the logits, whose sigmoid is the softmax over the two.

    Attributes:
        positive: id of the token for a relevant pair, such as that of `yes`.
        negative: id of the other token; `None` if the score is the logit of the first.
        template: template as in `Task`, or empty.
        reason: the reason if pairs are not read, because an unknown prompt surrounds them.
    """

    positive: int
    negative: int | None
    template: str = ""
    reason: str = ""

    @classmethod
    def of(cls, positive: int, negative: int | None, *, templated: bool) -> Reranker:
        """Return the reranker, with the reason why it reads no pairs if a chat template makes their prompts."""
        reason = (
            "a chat template makes the prompt of a pair, which is not interpreted: the head scores but reads no pairs, "
            "unless `capture` gets the prompt (" + argument("prompt") + ")"
        )
        return cls(positive, negative, reason=reason if templated else "")

    @classmethod
    def named(cls, folder: Path, tokens: Sequence[str]) -> Reranker:
        """Return the reranker of a model folder from two tokens, the positive one first.

        Raises:
            UsageError: the tokenizer does not have a token, or there are not two.
            FileError: the folder has no `tokenizer.json`.
        """
        if len(tokens) != 2 or len({*tokens}) != 2:
            raise UsageError(
                argument("reranker_tokens") + " must name two tokens", found=quoted(tokens), expected="such as `yes,no`"
            )
        tokenizer = Tokenizer.from_json(read_text(folder / TOKENIZER_FILE), sys.maxsize)
        ids = [tokenizer.id_of(token) for token in tokens]
        unknown = [token for token, number in zip(tokens, ids, strict=True) if number is None]
        if unknown:
            raise UsageError(
                argument("reranker_tokens") + " names a token that the tokenizer does not have",
                where=folder,
                found=f"`{unknown[0]}`",
                expected="complete tokens, as written in `tokenizer.json`",
            )
        config = folder / "tokenizer_config.json"
        known = read_json(config) if config.is_file() else {}
        templated = (folder / "chat_template.jinja").is_file() or (isinstance(known, dict) and "chat_template" in known)
        return cls.of(cast(int, ids[0]), ids[1], templated=templated)

    def prompted(self, template: str) -> Reranker:
        """Return the reranker with a prompt, a template as in `Task`; raises `AdapterError` for any other text."""
        Task("ranking", input="pair", template=template)
        return replace(self, template=template, reason="")

    def check_chat_template(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Reject a prompt that encodes a pair differently from the chat template of a cross-encoder.

        Args:
            folder: the folder of the model.
            settings: the arguments of the chat template in the files of sentence-transformers.

        Raises:
            UsageError: the tokens differ; the message has the text that the chat template makes.
            BaseModelError: transformers cannot use the tokenizer or its template.
        """
        task = Task("ranking", input="pair", template=self.template)
        ours = Tokenizer.from_json(read_text(folder / TOKENIZER_FILE), sys.maxsize)
        expected = [encoding.ids for encoding in ours.whole([task.filled(*pair) for pair in _SAMPLES])]
        tokens, rendered = list[list[int]](), ""
        with parsing(BaseModelError):
            own: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            render = partial(own.apply_chat_template, **settings)
            for flat in (True, False):
                with suppress(jinja2.TemplateError):
                    messages = [_messages(*pair, flat=flat) for pair in _SAMPLES]
                    tokens = [list(render(one, tokenize=True, return_dict=False)) for one in messages]
                    rendered = rendered or render(_messages("{text}", "{pair}", flat=flat), tokenize=False)
                if tokens == expected:
                    return
        raise UsageError(
            argument("prompt") + " encodes a pair differently from the chat template of the folder",
            where=folder,
            found=f"`{self.template}`",
            expected=f"`{rendered}`, and a tokenizer that adds no special tokens" if rendered else "its chat template",
        )

    def behind(self, language: PreTrainedModel) -> nn.Module:
        """Return the model below the language head followed by the score, `logits` [batch, 1].

        Raises:
            BaseModelError: it is not a language model, or its logits are not a linear layer of the final hidden state.
        """
        last = language.get_output_embeddings()
        body: nn.Module = language.base_model
        if not isinstance(last, nn.Linear) or body is language:
            raise BaseModelError("is not a language model with a linear output layer", found=type(language).__name__)
        highest = max(self.positive, self.negative or 0)
        if highest >= last.out_features:
            expected = f"ids below {last.out_features}"
            raise BaseModelError("has no logit for a token of the reranker", found=f"id {highest}", expected=expected)
        score = nn.Linear(last.in_features, 1, bias=last.bias is not None)
        with torch.no_grad():
            for own, rows in ((score.weight, last.weight), (score.bias, last.bias)):
                if own is not None:
                    row = rows[self.positive] - (0 if self.negative is None else rows[self.negative])
                    own.copy_(row.reshape(own.shape))
        body.add_module("score", score)

        def scored(_module: nn.Module, _given: object, inputs: dict[str, Any], output: Any) -> dict[str, Tensor]:
            pooled = pooling_operator("last")(output.last_hidden_state, inputs["attention_mask"])
            return {"logits": score(pooled)}

        ids = torch.arange(14).reshape(2, 7) % last.out_features
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            logits = language(input_ids=ids, attention_mask=mask).logits[:, -1]
            expected = logits[:, [self.positive]] - (0 if self.negative is None else logits[:, [self.negative]])
            body.register_forward_hook(scored, with_kwargs=True)
            found = body(input_ids=ids, attention_mask=mask)["logits"]
        if (found - expected).abs().max() > _TOLERANCE * logits.abs().max():
            raise BaseModelError("computes logits that are not a linear layer of the final hidden state")
        return body

    def task(self, config: Mapping[str, Any], max_tokens: int | None) -> tuple[Task | None, tuple[str, ...]]:
        """Return the task of the scores, and notes."""
        if self.reason:
            return None, (self.reason,)
        activation = score_activation(config)
        task = Task("ranking", activation=activation, input="pair", max_tokens=max_tokens, template=self.template)
        return task, ()


def _messages(first: str, second: str, *, flat: bool) -> list[dict[str, Any]]:
    """Return a pair as sentence-transformers passes it to a chat template: contents are texts or lists of them."""
    contents: list[Any] = [first, second] if flat else [[{"type": "text", "text": one}] for one in (first, second)]
    return [{"role": role, "content": one} for role, one in zip(("query", "document"), contents, strict=True)]
