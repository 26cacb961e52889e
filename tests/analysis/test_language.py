"""Language models on labelled texts: the perplexity of transformers and PEFT, and the answers that they write."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small_bundle import text_bundle
from tiers import some_quick
from tiny_generators import ADAPTERS, END, LONGEST, MODELS, generating, peft_model
from torch.nn import functional as F
from transformers import AutoTokenizer

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.errors import DataError, UsageError
from adapter_export.graph.tasks.metrics import judge_texts
from adapter_export.runtime import Bundle
from adapter_export.runtime.generation.call_budget import CallBudget

CHOICES = (None, *ADAPTERS)
SPARE = 8
PROMPTS = ["w5 w9 w33 w71", "w27", "w40 w2 w8 w60 w61 w62", "w22 w90", "w44 w44 w3"]


@pytest.fixture(scope="module", params=some_quick(MODELS, "llama"))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "llama")


@dataclass(frozen=True)
class Transformers:
    """A model with one of its PEFT adapters, and its tokenizer."""

    model: Any
    tokenizer: Any

    @classmethod
    def of(cls, folder: Path, name: str | None) -> Transformers:
        return cls(peft_model(folder, name), AutoTokenizer.from_pretrained(folder / "hf"))

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text)["input_ids"]
        return found

    def losses(self, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each token after a prompt, and whether it is the likeliest."""
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
        right = ids[0, len(prompt) :]
        return F.cross_entropy(logits, right, reduction="none"), logits.argmax(-1) == right

    def written(self, prompt: str, count: int, stop: str | None) -> str:
        """The text of the likeliest tokens after a prompt, up to a stop."""
        ids = torch.tensor([self.ids(prompt)])
        with torch.no_grad():
            found = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
            )
        text: str = self.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        return text.strip() if stop is None else text.partition(stop)[0].strip()

    def stop(self) -> tuple[int, str]:
        """The place of a prompt, and a word that ends its answer."""
        answers = [self.written(prompt, 6, None).split() for prompt in PROMPTS]
        return next((at, word) for at, words in enumerate(answers) for word in words if word != words[0])


def table(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    path.write_text("\n".join("\t".join(row) for row in [("prompt", "answer"), *rows]))
    return path


@pytest.mark.parametrize("name", CHOICES)
def test_scores_are_those_of_transformers_and_peft(
    folder: Path, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = CallBudget(tokens=3, least=1)  # so that short texts take several calls
    monkeypatch.setattr(CallBudget, "of", classmethod(lambda *_: small))
    model, bundle = Transformers.of(folder, name), Bundle.open(folder / "bundle")
    ended, stop = model.stop()
    answers = [model.written(prompt, 6, stop) or "w7" for prompt in PROMPTS]
    answers[ended - 1] += " w22"
    rows = list(zip(PROMPTS, answers, strict=True))
    found = ae.evaluate(bundle, table(tmp_path / "data.tsv", rows), adapter=name or "base", stop=[stop])
    parts = [model.losses(model.ids(prompt), [*model.ids(answer), END]) for prompt, answer in rows]
    each, right = (torch.cat(part) for part in zip(*parts, strict=True))
    limit = max(len(model.ids(answer)) for answer in answers) + 1 + SPARE
    same = [model.written(prompt, limit, stop) == answer for prompt, answer in rows]
    assert 0 < sum(same) < len(same)
    # the loss log Σ exp(z) - z changes by at most twice the largest change of a logit
    record = bundle.manifest.golden if name is None else bundle.manifest.adapters[list(ADAPTERS).index(name)].golden
    allowed = 2 * record.absolute["logits"]
    scores = {metric: score.value for metric, score in found.scores.items()}
    assert scores["perplexity"] == pytest.approx(math.exp(float(each.mean())), rel=math.expm1(allowed))
    assert scores["token_accuracy"] == pytest.approx(float(right.double().mean()))
    assert scores["exact_match"] == pytest.approx(sum(same) / len(same))
    assert (found.task, found.adapter, found.rows) == ("causal_lm", name or "base", len(rows))


def test_unlabelled_texts_are_scored_by_perplexity(llama: Path, tmp_path: Path) -> None:
    texts = [PROMPTS[0], PROMPTS[2], " ".join(["w27 w44 w3 w60"] * (LONGEST // 4)) + " w8 w9 w5 w3"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    bundle = Bundle.open(llama / "bundle")
    found = ae.evaluate(bundle, tmp_path / "texts.txt", adapter="b")
    model = Transformers.of(llama, "b")
    whole = [[*model.ids(text), END][:LONGEST] for text in texts]
    each = torch.cat([model.losses(text[:1], text[1:])[0] for text in whole])
    allowed = math.expm1(2 * bundle.manifest.adapters[1].golden.absolute["logits"])  # as above
    assert found.scores["perplexity"].value == pytest.approx(math.exp(float(each.mean())), rel=allowed)
    assert list(found.scores) == ["perplexity", "token_accuracy"]
    cut = f"1 text is longer than {LONGEST} tokens and cut there (line 3): 5 tokens not measured"
    assert cut in found.notes
    low, value, high = (getattr(found.scores["perplexity"], name) for name in ("low", "value", "high"))
    assert low < value < high


def test_perplexity_is_weighted_by_tokens() -> None:
    judged = judge_texts([np.array([1.0, 1, 1]), np.array([3.0])], [np.ones(3, bool), np.zeros(1, bool)], None, "ab")
    assert judged.measure(np.arange(2)) == pytest.approx((math.exp(6 / 4), 3 / 4))
    assert judged.measure(np.array([1, 1])) == pytest.approx((math.exp(3), 0))


def test_gates_and_slices_work_for_language_models(llama: Path, tmp_path: Path) -> None:
    model = Transformers.of(llama, "a")
    _, stop = model.stop()
    rows = [(prompt, model.written(prompt, 4, stop) or "w7") for prompt in PROMPTS[:3]]
    rows.append((PROMPTS[3], "w2 w3"))
    lines = [{"ask": ask, "say": say, "part": at % 2} for at, (ask, say) in enumerate(rows)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    call = ["evaluate", llama / "bundle", "--data", tmp_path / "data.jsonl", "--adapter", "a", "--text", "ask"]
    call += ["--pair", "say", "--stop", stop, "--slices", "part", "--json"]
    missed = CliRunner().invoke(main, [*map(str, call), "--gate", "exact_match=0.99", "--gate", "perplexity=1e6"])
    assert missed.exit_code == 1, missed.output
    document = json.loads(missed.stdout)
    assert [(gate["metric"], gate["passed"]) for gate in document["gates"]] == [
        ("exact_match", False),
        ("perplexity", True),
    ]
    assert {one["value"]: one["rows"] for one in document["slices"]} == {"0": 2, "1": 2}
    assert CliRunner().invoke(main, [*map(str, call), "--gate", "exact_match=0"]).exit_code == 0
    report = tmp_path / "report.html"
    assert CliRunner().invoke(main, [*map(str, call[:-1]), "--report", str(report)]).exit_code == 0
    assert "perplexity" in report.read_text()


def test_evaluate_refuses_texts_that_cannot_be_scored(
    llama: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = Bundle.open(llama / "bundle")
    data = table(tmp_path / "data.tsv", [("w5", "w6")])
    with pytest.raises(UsageError, match="no adapter is named"):
        ae.evaluate(bundle, data)
    with pytest.raises(UsageError, match="`label`"):
        ae.evaluate(bundle, data, adapter="a", label="answer")
    with pytest.raises(UsageError, match="`against`"):
        ae.evaluate(bundle, data, adapter="a", against=llama / "base.pt")
    with pytest.raises(UsageError, match="no such column"):
        ae.evaluate(bundle, data, adapter="a", slices="language")
    with pytest.raises(UsageError, match="is not a metric of this task"):
        ae.evaluate(bundle, data, adapter="a", gate={"accuracy": 0.5})
    with pytest.raises(UsageError, match="`stop`"):
        ae.evaluate(text_bundle(tmp_path_factory), data, adapter="tone", stop=["x"])
    for prompt, answer, found in ((" ".join(["w5"] * LONGEST), "w6", "line 2"), ("w5", "", "no answer")):
        with pytest.raises(DataError, match=found):
            ae.evaluate(bundle, table(tmp_path / "wrong.tsv", [(prompt, answer)]), adapter="a")
    (tmp_path / "one.txt").write_text("\n")
    with pytest.raises(DataError, match="contains no texts"):
        ae.evaluate(bundle, tmp_path / "one.txt", adapter="a")
