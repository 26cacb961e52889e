"""Train, build, evaluate: on every kind of base, the bundle gives the scores that the record of training has."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answering import write
from heard import Heard
from once import once
from small_models import small
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

import adapter_export as ae
from adapter_export.errors import RequestError
from adapter_export.plugins.lab.evaluation import Evaluation
from adapter_export.torch_backend.attach import attach

WORDS = [f"w{number}" for number in range(60)]
MASKED = ("input_ids", "attention_mask")


class Plain(nn.Module):
    """A model of transformers that takes a mask, or none, and returns its hidden states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return hidden


@dataclass(frozen=True)
class Kind:
    """A kind of base.

    Attributes:
        make: creates the model.
        neutral: whether rows may be padded.
        inputs: names of the inputs.
        lengths: supported lengths of the token axis.
        side: padding side of the tokenizer.
    """

    make: Callable[[], nn.Module]
    neutral: bool = True
    inputs: Sequence[str] = MASKED
    lengths: Sequence[str] = ()
    side: str = "right"


BASES: Mapping[str, Kind] = {
    "encoder": Kind(lambda: small("Bert")),
    "decoder": Kind(lambda: small("GPT2", use_cache=False), side="left"),
    "convolution": Kind(lambda: small("ConvBert"), neutral=False),
    "unmasked": Kind(lambda: small("Bert"), neutral=False, inputs=MASKED[:1]),
    "steps": Kind(lambda: small("Bert"), lengths=["sequence=multiple-of-8"]),
    "fixed": Kind(lambda: small("Bert"), lengths=["sequence=24"]),
}


def tokenizer(side: str) -> str:
    known = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(direction=side, pad_id=0, pad_token="[PAD]")
    return str(made.to_str())


def capture(folder: Path, name: str) -> None:
    kind = BASES[name]
    (folder / "tokenizer.json").write_text(tokenizer(kind.side))
    ae.capture(
        Plain(kind.make()).eval(),
        folder / "model.pt",
        example_inputs=dict.fromkeys(kind.inputs, torch.ones(2, 24, dtype=torch.long)),
        axes={key: {0: "batch", 1: "sequence"} for key in kind.inputs},
        tokenizer=folder / "tokenizer.json",
        max_tokens=24,
        lengths=kind.lengths,
        reporter=Heard(),
    )


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the archive of a base by its name."""
    return lambda name: once(tmp_path_factory, f"base {name}", partial(capture, name=name)) / "model.pt"


def texts(rng: np.random.Generator, counts: Sequence[int]) -> str:
    return " ".join(rng.choice(WORDS, int(rng.choice(counts))))


@dataclass(frozen=True)
class Case:
    """A training: of what base, for what task, with which adapter, on texts of how many words."""

    base: str
    task: str = "single_label"
    options: Mapping[str, Any] = field(default_factory=dict)
    counts: Sequence[int] = range(1, 9)
    neutral: bool | None = None

    @property
    def pads(self) -> bool:
        """True if rows may be padded."""
        return BASES[self.base].neutral if self.neutral is None else self.neutral

    def rows(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Rows whose answers are chance."""
        rng = np.random.default_rng(seed)
        return [self._row(rng) for _ in range(count)]

    def _row(self, rng: np.random.Generator) -> dict[str, Any]:
        text, other = texts(rng, self.counts), texts(rng, self.counts)
        match self.task:
            case "span":
                words = other.split()
                at = int(rng.integers(len(words)))
                start = len(" ".join(words[:at])) + (at > 0)
                return {"text": text, "pair": other, "label": {"text": [words[at]], "answer_start": [start]}}
            case "multiple_choice":
                choices = dict.fromkeys(f"{texts(rng, self.counts)} w{at}" for at in range(int(rng.integers(2, 5))))
                return {"text": text, "pair": list(choices), "label": int(rng.integers(len(choices)))}
            case "token":
                return {"text": text.split(), "label": rng.choice(["A", "B"], len(text.split())).tolist()}
            case _:
                return {"text": text, "label": str(rng.choice(["x", "y", "z"]))}


GATE = {"gate": True}
CASES = {
    "encoder": Case("encoder"),
    "decoder": Case("decoder"),
    "unmasked": Case("unmasked"),
    "steps": Case("steps"),
    "gate": Case("encoder", options=GATE, neutral=False),
    "gate on steps": Case("steps", options=GATE, counts=(6, 14), neutral=False),
    "span on one length": Case("fixed", "span", counts=range(1, 8)),
    "span, convolution": Case("convolution", "span", counts=range(1, 8)),
    "choices, convolution": Case("convolution", "multiple_choice", counts=range(1, 7)),
    "words on steps": Case("steps", "token"),
    "words, decoder": Case("decoder", "token"),
    "vectors, convolution": Case("convolution", "embedding"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_record_of_training_is_confirmed(name: str, archive: Callable[[str], Path], tmp_path: Path) -> None:
    case, base, heard = CASES[name], ae.open_base(archive(CASES[name].base)), Heard()
    learn, test = (
        write(tmp_path / f"{part}.jsonl", case.rows(90, seed)) for seed, part in enumerate(("learn", "test"))
    )
    pair = {"pair": "pair"} if case.task in ("span", "multiple_choice") else {}
    adapter = ae.train(
        base,
        learn,
        test_data=test,
        task=case.task,  # type: ignore[arg-type]
        bottleneck=8,
        epochs=2,
        batch_size=16,
        learning_rate=0.02,
        name="a",
        reporter=heard,
        **pair,
        **case.options,
    )
    assert adapter.training["settings"]["padding_neutral"] is case.pads
    assert any("padding changes results" in note for note in heard.notes) is not case.pads
    bundle = ae.build(base, {"a": adapter}, tmp_path / "bundle", variants=("slots",), reporter=Heard())
    found = ae.evaluate(bundle, test, adapter="a", resamples=0, against=base, **pair)
    assert found.training_record is not None
    assert found.training_record.part == "test"
    assert found.training_record.passed, list(found.faults())
    assert found.training_record.found == pytest.approx(found.training_record.scores, abs=1e-6)
    assert found.versus is not None
    assert found.versus.largest <= found.versus.allowed
    if pair:
        check_compared(bundle, test, found, pair)


def check_compared(bundle: ae.Bundle, data: Path, found: Evaluation, pair: dict[str, Any]) -> None:
    """`compare` gives the same scores."""
    other = shutil.copytree(bundle.folder, bundle.folder.with_name("other"))
    compared = ae.compare(bundle.folder, other, data=data, rounds=0, resamples=0, **pair)
    for one in compared.contestants:
        assert {name: score.value for name, score in one.scores.items()} == {
            name: score.value for name, score in found.scores.items()
        }


def test_texts_that_no_server_would_take_are_refused_before_training(
    archive: Callable[[str], Path], tmp_path: Path
) -> None:
    """A gate counts padding, so that texts are not padded to the lengths that a base takes."""
    case = Case("steps")
    data = write(tmp_path / "learn.jsonl", case.rows(60, 0))
    with pytest.raises(RequestError, match=r"the training data.*padding would change its result; found 3;"):
        ae.train(archive("steps"), data, bottleneck=8, gate=True)


def test_classes_changed_by_a_precision_are_counted_on_single_texts(
    archive: Callable[[str], Path], tmp_path: Path
) -> None:
    """The base in int8 counts padding; its classes equal those of single texts."""
    case = Case("convolution")
    rows = case.rows(40, 0)
    data = write(tmp_path / "learn.jsonl", rows)
    base = ae.open_base(archive("convolution"))
    adapter = ae.train(base, data, bottleneck=8, epochs=2, learning_rate=0.02, name="a", reporter=Heard())
    bundle = ae.build(
        base, {"a": adapter}, tmp_path / "bundle", base_precision="int8", variants=("slots",), reporter=Heard()
    )
    report = ae.check(bundle, against=base, data=data, text="text", quick=True)
    assert report.agreements is not None
    record = next(one for one in report.agreements.results if (one.adapter, one.output) == ("a", "logits"))
    reader, model, sides = bundle.texts(), attach(base.torch, adapter, sites=base.sites.map), []
    for row in rows:
        (read,) = reader.read([row["text"]], "a")
        arrays = reader.arrays(read.rows, "a")
        with torch.inference_mode():
            expected = model.head(**{key: torch.from_numpy(array) for key, array in arrays.items()})
        sides.append((reader.session.run(arrays, "a")["logits"][0], expected.numpy()[0]))
    assert record.rows == len(rows)
    assert record.agree == sum(int(found.argmax() == wanted.argmax()) for found, wanted in sides)
    assert record.absolute == pytest.approx(max(np.abs(found - wanted).max() for found, wanted in sides), rel=1e-4)
