"""Prompts in calls of bounded cost: texts equal those of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_generators import END, LONGEST, MODELS, generating, peft_model

from adapter_export.errors import RequestError
from adapter_export.runtime import Bundle, Decoding, Session
from adapter_export.runtime.generation.call_budget import CallBudget, cost_of, parts_of
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import WrittenRow
from adapter_export.runtime.generation.running_rows import RunningRows

COUNT = 6
SMALL = CallBudget(tokens=8, cells=40, least=2, running=100)
PROMPTS = [np.random.default_rng(at).integers(2, END, size).tolist() for at, size in enumerate((41, 3, 1, 17, 8, 42))]


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str | None, list[list[int]]]:
    """The tokens that transformers and PEFT write after each prompt separately."""
    import torch

    found: dict[str | None, list[list[int]]] = {}
    for name in (None, "a", "b"):
        model = peft_model(folder, name)
        written = [
            model.generate(input_ids=torch.tensor([one]), max_new_tokens=COUNT, do_sample=False)[0, len(one) :].tolist()
            for one in PROMPTS
        ]
        found[name] = [one[: one.index(END)] if END in one else one for one in written]
    return found


@pytest.fixture
def session(folder: Path) -> Session:
    found = Bundle.open(folder / "bundle").session()
    found.decoder.budget = SMALL
    names = [None, "a", "b"]
    found.generate([PROMPTS[0]] * 3 + [PROMPTS[1]] * 3, adapters=names * 2, decoding=Decoding(1))  # tries each adapter
    return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Rows, new tokens and all tokens of each call."""
    found: list[tuple[int, int, int]] = []
    run = Session.run

    def counted(self: Session, inputs: dict[str, np.ndarray], *given: object, **named: object) -> object:
        found.append((*inputs["input_ids"].shape, inputs["attention_mask"].shape[1]))
        return run(self, inputs, *given, **named)

    monkeypatch.setattr(Session, "run", counted)
    return found


def _check_bounds(calls: list[tuple[int, int, int]]) -> None:
    for rows, new, total in calls:
        if new > 1:
            assert rows * new <= SMALL.tokens
            assert rows * new * total <= SMALL.cells or (rows, new) == (1, SMALL.least)


@pytest.mark.parametrize(
    "adapters", [[None] * 6, ["a"] * 6, ["b", "a", None, "b", "b", "a"]], ids=["base", "a", "mixed"]
)
def test_texts_are_those_of_transformers(
    session: Session, expected: dict[str | None, list[list[int]]], calls: Any, adapters: list[str | None]
) -> None:
    found = session.generate(PROMPTS, adapters=adapters, decoding=Decoding(COUNT), ends={END})
    assert found == [expected[name][at] for at, name in enumerate(adapters)]
    _check_bounds(calls)
    assert max(new for _, new, _ in calls) > 1


def test_texts_of_a_writer_are_the_same(folder: Path, expected: dict[str | None, list[list[int]]]) -> None:
    bundle = Bundle.open(folder / "bundle")
    session = bundle.session()
    session.decoder.budget = SMALL
    texts = [" ".join(f"w{token}" for token in prompt) for prompt in PROMPTS]
    whole = bundle.writer().write(texts, "a", decoding=Decoding(COUNT))
    parts = bundle.writer(session).write(texts, "a", decoding=Decoding(COUNT))
    assert [one.tokens for one in parts] == [one.tokens for one in whole]


def test_rows_may_join_between_steps(
    session: Session, expected: dict[str | None, list[list[int]]], calls: list[tuple[int, int, int]]
) -> None:
    """A step computes a part of one long prompt, so that short ones beside it are written meanwhile."""
    names = ["a", "b", None, "a", "b", "a"]
    rows = [
        WrittenRow(at, prompt, name, Decoding(COUNT), {END})
        for at, (prompt, name) in enumerate(zip(PROMPTS, names, strict=True))
    ]
    running = RunningRows(session.decoder)
    for at in (0, 5):
        running.join([rows[at]])
        running.step()
    running.join([rows[1], rows[2]])
    running.step()
    assert [len(rows[at].tokens) for at in (0, 5, 1, 2)] == [0, 0, 1, 1]
    running.join(rows[3:5])
    while not all(row.is_done for row in rows):
        running.step()
    assert [row.tokens for row in rows] == [expected[name][at] for at, name in enumerate(names)]
    _check_bounds(calls)


def test_an_abandoned_prompt_is_dropped_at_its_next_part(session: Session, calls: list[tuple[int, int, int]]) -> None:
    running, row = RunningRows(session.decoder), WrittenRow(0, PROMPTS[0], "a", Decoding(COUNT))
    running.join([row])
    running.step()
    row.abandoned = True
    calls.clear()
    assert (running.step(), calls) == ([], [])


def test_a_part_that_cannot_be_computed_ends_its_row_only(session: Session) -> None:
    wrong, fits = WrittenRow(0, [*PROMPTS[0][:20], 999], "a"), WrittenRow(1, [5, 9], "a", Decoding(3))
    running = RunningRows(session.decoder)
    running.join([wrong, fits])
    found = [row for _ in range(30) for row in running.step()]
    assert (type(wrong.error), wrong.tokens, fits.error, len(fits.tokens)) == (RequestError, [], None, 3)
    assert found.count(wrong) == 1


def test_bases_whose_calls_are_not_invariant_compute_prompts_whole(folder: Path, calls: Any) -> None:
    """As dynamic int8, whose scale depends on all tokens of a call."""
    bundle = Bundle.open(folder / "bundle")
    decoder = Decoder(bundle.session(), replace(bundle.manifest, batch_invariant=False))
    decoder.budget = SMALL
    list(decoder.write(PROMPTS[:1], ["a"], Decoding(2), ()))
    assert calls == [(1, 41, 41), (1, 1, 42)]


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(1, 2**20), st.integers(1, 64))
def test_a_chunk_is_the_largest_within_the_budget(past: int, tokens: int, cells: int, least: int) -> None:
    chunk = CallBudget(tokens, cells, least, part=tokens).chunk(past)
    assert chunk == least or (chunk <= tokens and chunk * (past + chunk) <= cells)
    assert chunk >= tokens or (chunk + 1) * (past + chunk + 1) > cells


def test_parts_of_rows_bound_their_padded_caches(session: Session) -> None:
    rows = [WrittenRow(at, prompt, None, Decoding(COUNT)) for at, prompt in enumerate(PROMPTS)]
    inputs = session.decoder.inputs
    assert [cost_of(row, inputs) for row in rows] == [47, 9, 7, 23, 14, LONGEST]
    parts = list(parts_of(rows, inputs, 60))
    assert [[row.place for row in part] for part in parts] == [[2, 1, 4], [3], [0], [5]]


def test_the_budget_depends_on_the_vocabulary_and_the_caches(session: Session) -> None:
    inputs = session.decoder.inputs
    assert CallBudget.of(inputs) == CallBudget(512, 2**18, 32, 2**16)
    wide = replace(inputs, logits=replace(inputs.logits, axes=(*inputs.logits.axes[:2], 2**18)))
    assert CallBudget.of(wide).tokens == 128
    large = {
        replace(record, axes=tuple(2**9 if axis == 8 else axis for axis in record.axes)): axis
        for record, axis in inputs.caches.items()
    }
    assert CallBudget.of(replace(inputs, caches=large)).running == 2**30 // (2 * 2 * 2 * 2**9 * 4)
