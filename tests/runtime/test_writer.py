"""Texts that bundles write: those of transformers and PEFT, token by token, whatever is beside a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiers import some_quick
from tiny_generators import ADAPTERS, END, LONGEST, MODELS, WORDS, generating, peft_model

from adapter_export.errors import RequestError, UsageError
from adapter_export.runtime import Bundle, Decoding, Session
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import WrittenRow, next_token
from adapter_export.runtime.generation.running_rows import RunningRows

CHOICES = (None, *ADAPTERS)
COUNT = 12
PROMPTS = [[5, 9, 33, 71], [17], [40, 2, 8, 60, 61, 62, 7, 12, 90], [5, 9, 33, 71]]


@pytest.fixture(scope="module", params=some_quick(MODELS, "llama"))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder / "bundle")


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Session:
    return bundle.session()


def in_transformers(folder: Path, name: str | None, prompt: Sequence[int], count: int = COUNT) -> list[int]:
    """The tokens that `generate` writes behind a prompt alone, without the one that ends a text."""
    ids = torch.tensor([list(prompt)])
    found = peft_model(folder, name).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
    )
    written = found[0, len(prompt) :].tolist()
    return written[: written.index(END)] if END in written else written


def words(tokens: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def test_openvino_writes_the_same(bundle: Bundle, session: Session) -> None:
    """In its bank, each row with another adapter, from caches that are empty at first."""
    choices = [*CHOICES, *CHOICES][: len(PROMPTS)]
    expected = session.generate(PROMPTS, adapters=choices, decoding=Decoding(COUNT), ends={END})
    openvino = bundle.session(provider="openvino", threads=1)
    assert openvino.generate(PROMPTS, adapters=choices, decoding=Decoding(COUNT), ends={END}) == expected


def test_every_row_has_the_text_of_transformers_and_peft(folder: Path, session: Session) -> None:
    expected = {name: [in_transformers(folder, name, prompt) for prompt in PROMPTS] for name in CHOICES}
    assert len({tuple(map(tuple, texts)) for texts in expected.values()}) == len(CHOICES)  # adapters are told apart
    for name in CHOICES:
        assert session.generate(PROMPTS, name, decoding=Decoding(COUNT), ends={END}) == expected[name]
    mixed = [None, "a", "b", "a"]
    found = session.generate(PROMPTS, adapters=mixed, decoding=Decoding(COUNT), ends={END})
    assert found == [expected[name][at] for at, name in enumerate(mixed)]


def test_rows_of_different_lengths_and_adapters_share_calls(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = bundle.session()
    calls: list[int] = []
    run = Session.run

    def counted(self: Session, inputs: dict[str, np.ndarray], *given: object, **named: object) -> object:
        calls.append(len(inputs["input_ids"]))
        return run(self, inputs, *given, **named)

    monkeypatch.setattr(Session, "run", counted)
    session.generate(PROMPTS, adapters=[None, "a", "b", "a"], decoding=Decoding(COUNT))
    trials = [1, 1, 2, 1, 1, 2, 2] * 3  # once for each adapter, and the base
    assert calls == trials + [4] * COUNT
    calls.clear()
    session.generate(PROMPTS, adapters=[None, "a", "b", "a"], decoding=Decoding(3))
    assert calls == [4] * 3
    session.unload("b")
    calls.clear()
    session.generate(PROMPTS[:2], "a", decoding=Decoding(3))
    assert calls == [2] * 3


def test_a_text_goes_on_to_the_longest_whatever_is_beside_it(folder: Path, session: Session) -> None:
    long = list(np.random.default_rng(2).integers(2, END, LONGEST - 4))
    decoding = Decoding(LONGEST)
    alone = [session.generate([prompt], "a", decoding=decoding, ends=())[0] for prompt in ([17], long)]
    assert [len(one) for one in alone] == [LONGEST - 1, 4]
    assert session.generate([[17], long], "a", decoding=decoding, ends=()) == alone


def test_rows_that_join_and_leave_have_the_tokens_that_they_have_alone(session: Session, monkeypatch: Any) -> None:
    """Prompts of several lengths and adapters arrive at different steps; one row is abandoned."""
    random = np.random.default_rng(5)
    rows = [
        WrittenRow(0, random.integers(2, END, length).tolist(), adapter, Decoding(count), {END})
        for length, adapter, count in [(4, "a", 9), (1, "b", 3), (9, None, 14), (2, "a", 6), (6, "b", 20), (3, "b", 9)]
    ]
    expected = [session.generate([one.prompt], one.adapter, decoding=one.decoding, ends={END})[0] for one in rows]
    arriving = {0: rows[:2], 1: rows[2:3], 4: rows[3:5], 6: rows[5:]}
    calls: list[int] = []
    run = Session.run

    def counted(self: Session, inputs: dict[str, np.ndarray], *given: object, **named: object) -> object:
        calls.append(len(inputs["input_ids"]))
        return run(self, inputs, *given, **named)

    running = RunningRows(session.decoder)
    running.join([WrittenRow(0, [3], "a"), WrittenRow(1, [3, 4], "b"), WrittenRow(2, [3, 4, 5], None)])
    running.step()  # tries each adapter
    running = RunningRows(session.decoder)
    monkeypatch.setattr(Session, "run", counted)
    for step in range(40):
        running.join(arriving.get(step, []))
        if step == 8:
            rows[4].abandoned = True
        running.step()
    found = [one.tokens for one in rows]
    assert [found[at] for at in (0, 1, 2, 3, 5)] == [expected[at] for at in (0, 1, 2, 3, 5)]
    assert found[4] == expected[4][: len(found[4])]
    assert len(found[4]) < len(expected[4])
    assert calls[:4] == [2, 2, 1, 3]  # a new row computes its prompt beside the others, then joins them


def test_a_row_that_cannot_be_computed_leaves_the_others_alone(session: Session) -> None:
    fits, wrong = WrittenRow(0, [5, 9], "a", Decoding(4)), WrittenRow(0, [WORDS], "b", Decoding(4))
    running = RunningRows(session.decoder)
    running.join([fits, wrong])
    while running.step():
        pass
    assert [fits.tokens] == session.generate([[5, 9]], "a", decoding=Decoding(4), ends=())
    assert (wrong.tokens, type(wrong.error)) == ([], RequestError)


def test_rows_of_a_base_whose_rows_influence_each_other_share_no_call(bundle: Bundle, session: Session) -> None:
    decoder = Decoder(session, replace(bundle.manifest, batch_invariant=False))
    rows = [WrittenRow(0, [5, 9], "a", Decoding(4)) for _ in range(3)]
    assert [len(batch.rows) for batch in decoder.batches(rows)] == [1, 1, 1]
    one, other = decoder.batches(rows[:2])
    assert not decoder.may_share(one, other)


def test_texts_stop_where_they_should(folder: Path, bundle: Bundle) -> None:
    writer = bundle.writer()
    whole = in_transformers(folder, "a", [5, 9], 8)
    stop = f"w{whole[4]} w{whole[5]}"
    found, other = writer.write([words([5, 9]), words([27])], "a", decoding=Decoding(8, stop=[stop, "never"]))
    assert (found.finish, found.text) == ("stop", words(whole).partition(stop)[0])
    assert (other.finish, other.text) == ("length", words(in_transformers(folder, "a", [27], 8)))
    pieces = list(writer.stream([words([5, 9])], "a", decoding=Decoding(8, stop=[stop])))
    assert "".join(piece.text for piece in pieces) == found.text  # nothing was shown that had to be taken back
    assert len(pieces) > 2
    assert pieces[-1].done == found


def test_an_adapter_must_be_named(bundle: Bundle) -> None:
    writer = bundle.writer()
    with pytest.raises(UsageError, match="no adapter is named"):
        writer.write(["w5"])
    alone = writer.write(["w5"], "base")
    assert alone[0].adapter is None
    assert writer.write(["w5"], adapters=["base"]) == writer.write(["w5"], adapters=[None]) == alone


def test_a_drawn_text_depends_on_its_seed_and_not_on_other_rows(session: Session) -> None:
    drawn = Decoding(COUNT, temperature=1.5, top_k=40, top_p=0.95, seed=3)
    found = session.generate(PROMPTS, "b", decoding=drawn)
    assert found == session.generate(PROMPTS, "b", decoding=drawn)
    assert found[0] != found[3]  # the same prompt
    assert found[:2] == session.generate(PROMPTS[:2], "b", decoding=drawn)
    assert found != session.generate(PROMPTS, "b", decoding=Decoding(COUNT, temperature=1.5, seed=4))


def test_tokens_are_drawn_by_their_probabilities() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))
    draws = 4000

    def shares(**options: float) -> np.ndarray:
        decoding, random = Decoding(**options), np.random.default_rng(0)
        found = [next_token(logits, decoding, random) for _ in range(draws)]
        return np.bincount(found, minlength=4) / draws

    far = 4 * np.sqrt(0.25 / draws)  # four standard deviations of a share of one half
    np.testing.assert_allclose(shares(temperature=1.0), [0.1, 0.5, 0.15, 0.25], atol=far)
    squares = np.array([0.1, 0.5, 0.15, 0.25]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), squares / squares.sum(), atol=far)
    np.testing.assert_allclose(shares(temperature=1.0, top_k=2), [0, 2 / 3, 0, 1 / 3], atol=far)
    np.testing.assert_allclose(shares(temperature=1.0, top_p=0.8), [0, 5 / 9, 1 / 6, 5 / 18], atol=far)
    assert shares()[1] == 1


def test_what_cannot_be_written_is_refused(session: Session, bundle: Bundle) -> None:
    for prompt in ([], [3] * LONGEST):
        with pytest.raises(RequestError, match="too few or too many tokens"):
            session.generate([[5], prompt])
    with pytest.raises(RequestError, match=r"valid ids|0 to"):
        session.generate([[WORDS]])
    with pytest.raises(RequestError, match="`other`"):
        session.generate([[5]], "other")
    with pytest.raises(RequestError, match="not one adapter for each"):
        bundle.writer().write(["w5"], adapters=["a", "b"])
    for wrong in (["a", "b"], "a"):
        with pytest.raises(RequestError, match="not one adapter for each"):
            session.generate([[5]], adapters=wrong)
    with pytest.raises(RequestError, match="a list of texts"):
        bundle.writer().write("w5")
    with pytest.raises(RequestError, match="NaN"):
        next_token(np.array([0.0, np.nan]), Decoding(), np.random.default_rng(0))


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1.0, "top_p": 0.0},
        {"top_k": 3},
        {"stop": "text"},
        {"stop": [""]},
    ],
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Decoding(**options)


def test_a_bundle_that_does_not_generate_says_so(text_folder: Path) -> None:
    with pytest.raises(RequestError, match="does not generate text"):
        Bundle.open(text_folder / "bundle").writer()
