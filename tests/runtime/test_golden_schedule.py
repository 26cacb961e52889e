"""A check, and a server that starts, notice a generation engine that mixes up its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_generators import generating
from tiny_seq2seq import MODELS as SEQ2SEQ
from tiny_seq2seq import seq2seq

import adapter_export as ae
from adapter_export.errors import FormatError
from adapter_export.plugins.serve.models import check_resident
from adapter_export.plugins.serve.server_settings import SessionSettings
from adapter_export.runtime import Bundle
from adapter_export.runtime.generation import decoding_batch
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import DecodingBatch
from adapter_export.runtime.generation.golden_schedule import golden_texts, replay_schedule

Plant = Callable[[pytest.MonkeyPatch], None]


def _reorder(batch: DecodingBatch, first: int) -> list[int]:
    """Return the rows of a batch, those from `first` on in reverse order."""
    rows = len(batch.rows)
    return [*range(min(first, rows)), *reversed(range(first, rows))]


def _after_merge(change: Callable[[DecodingBatch], None]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        merged = DecodingBatch.merged

        def wrong(self: DecodingBatch, other: DecodingBatch) -> DecodingBatch:
            batch = merged(self, other)
            change(batch)
            return batch

        patch.setattr(DecodingBatch, "merged", wrong)

    return plant


def _swap_caches(first: int) -> Callable[[DecodingBatch], None]:
    def change(batch: DecodingBatch) -> None:
        order = _reorder(batch, first)
        batch._caches = {name: cache[order] for name, cache in batch._caches.items()}

    return change


def _swap_tokens(batch: DecodingBatch) -> None:
    batch._new = batch._new[_reorder(batch, 2)]


def _fill_mask(patch: pytest.MonkeyPatch) -> None:
    run = DecodingBatch._run

    def wrong(self: DecodingBatch, new: np.ndarray, mask: np.ndarray) -> np.ndarray:
        mask = mask.copy()
        mask[2:] = 1
        return run(self, new, mask)

    patch.setattr(DecodingBatch, "_run", wrong)


def _pad_behind(patch: pytest.MonkeyPatch) -> None:
    padded = decoding_batch._padded

    def wrong(array: np.ndarray, axis: int, count: int) -> np.ndarray:
        if axis == 1 or len(array) < 2:
            return padded(array, axis, count)
        return np.pad(array, [(0, count if at == axis else 0) for at in range(array.ndim)])

    patch.setattr(decoding_batch, "_padded", wrong)


def _drop_another_row(patch: pytest.MonkeyPatch) -> None:
    drop_done = DecodingBatch.drop_done

    def wrong(self: DecodingBatch) -> None:
        if any(row.is_done for row in self.rows):
            self._caches = {name: np.roll(cache, 1, 0) for name, cache in self._caches.items()}
        drop_done(self)

    patch.setattr(DecodingBatch, "drop_done", wrong)


FAULTS: dict[str, Plant] = {
    "caches swapped from the third row on when rows join": _after_merge(_swap_caches(2)),
    "caches swapped when rows join": _after_merge(_swap_caches(0)),
    "a mask of ones from the third row on": _fill_mask,
    "padding behind the caches of two rows or more": _pad_behind,
    "last tokens swapped from the third row on when rows join": _after_merge(_swap_tokens),
    "the caches of another row removed when a row leaves": _drop_another_row,
}

WITHOUT_MASK = [fault for fault in FAULTS if "mask" not in fault and "padding" not in fault]
"""Faults in rows of encoder–decoders, whose decoders have no mask, and so no padding."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "llama") / "bundle"


def _failed(report: ae.Report) -> set[str]:
    return {finding.check for finding in report.findings if finding.status == "failed"}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_notices_an_engine_that_mixes_up_rows(bundle: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    assert _failed(ae.verify(bundle)) == {"golden schedule"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_check_of_slots_notices_an_engine_that_mixes_up_rows(
    bundle: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAULTS[fault](monkeypatch)
    assert _failed(ae.check(bundle, variants=["slots"], quick=True)) == {"golden schedule"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_does_not_start_with_an_engine_that_mixes_up_rows(
    bundle: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(bundle)
    session = opened.session()
    check_resident(opened, session, SessionSettings())
    FAULTS[fault](monkeypatch)
    with pytest.raises(FormatError, match="generates other texts than the reference when rows join and leave"):
        check_resident(opened, opened.session(), SessionSettings())


def test_rows_run_together_in_every_engine(bundle: Path) -> None:
    findings = [finding for finding in ae.verify(bundle).findings if finding.check == "golden schedule"]
    assert {finding.subject for finding in findings} == {"base", "a", "b"}
    assert {finding.detail for finding in findings} == {
        "bank: 90 rows that join and leave, up to 18 in a call; slots: 90 rows that join and leave, up to 10 in a call"
    }


def test_rows_of_a_base_whose_rows_influence_each_other_run_by_themselves(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    decoder = Decoder(opened.session(), replace(opened.manifest, batch_invariant=False))
    replay = replay_schedule(decoder, golden_texts(opened.manifest, [None, "a"]))
    assert (replay.most, replay.faults) == (1, {})


def test_a_server_writes_a_bounded_number_of_texts(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    texts = golden_texts(opened.manifest, [None, "a", "b"])
    replay = replay_schedule(opened.session().decoder, texts * 10, brief=True)
    assert (replay.rows, replay.faults) == (24, {})


@pytest.mark.extended
@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_rows_of_encoder_decoders_run_together(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    report = ae.verify(seq2seq(tmp_path_factory, kind) / "bundle")
    findings = [finding for finding in report.findings if finding.check == "golden schedule"]
    assert [finding.status for finding in findings] == ["tested"] * 3
    assert all("up to 9 in a call" in finding.detail for finding in findings)


@pytest.mark.extended
@pytest.mark.parametrize("kind", SEQ2SEQ)
@pytest.mark.parametrize("fault", WITHOUT_MASK)
def test_verify_notices_mixed_up_rows_of_an_encoder_decoder(
    tmp_path_factory: pytest.TempPathFactory, kind: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAULTS[fault](monkeypatch)
    assert _failed(ae.verify(seq2seq(tmp_path_factory, kind) / "bundle")) == {"golden schedule"}
