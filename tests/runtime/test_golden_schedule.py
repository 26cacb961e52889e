"""A check, and a server that starts, notice a generation engine that mixes up its rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_bundle import build_small
from tiny_generators import generating
from tiny_seq2seq import MODELS as SEQ2SEQ
from tiny_seq2seq import seq2seq

import adapter_export as ae
from adapter_export.errors import FormatError
from adapter_export.plugins.selftest.engine_faults import ENGINES
from adapter_export.plugins.serve.models import check_resident
from adapter_export.plugins.serve.server_settings import SessionSettings
from adapter_export.runtime import Bundle
from adapter_export.runtime.generation import decoder
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.golden_schedule import golden_texts, replay_schedule

WITHOUT_MASK = [fault for fault in ENGINES if "padding" not in fault]
"""Faults in rows of encoder–decoders, whose decoders have no mask, and so no padding."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "llama") / "bundle"


def _failed(report: ae.Report) -> set[str]:
    return {finding.check for finding in report.findings if finding.status == "failed"}


@pytest.mark.parametrize("fault", ENGINES)
def test_verify_notices_an_engine_that_mixes_up_rows(bundle: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "DecodingBatch", ENGINES[fault])
    assert _failed(ae.verify(bundle)) == {"golden schedule"}


@pytest.mark.parametrize("fault", ENGINES)
def test_a_check_of_slots_notices_an_engine_that_mixes_up_rows(
    bundle: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "DecodingBatch", ENGINES[fault])
    assert _failed(ae.check(bundle, variants=["slots"], quick=True)) == {"golden schedule"}


@pytest.mark.parametrize("fault", ENGINES)
def test_a_server_does_not_start_with_an_engine_that_mixes_up_rows(
    bundle: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(bundle)
    session = opened.session()
    check_resident(opened, session, SessionSettings())
    monkeypatch.setattr(decoder, "DecodingBatch", ENGINES[fault])
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
    apart = Decoder(opened.session(), replace(opened.manifest, batch_invariant=False))
    replay = replay_schedule(apart, golden_texts(opened.manifest, [None, "a"]))
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
    monkeypatch.setattr(decoder, "DecodingBatch", ENGINES[fault])
    assert _failed(ae.verify(seq2seq(tmp_path_factory, kind) / "bundle")) == {"golden schedule"}


def test_a_self_test_plants_and_locates_faults_of_the_engine(bundle: Path) -> None:
    outcome = ae.self_test(bundle, kinds=list(ENGINES))
    assert {fault.name: fault.status for fault in outcome.faults} == dict.fromkeys(ENGINES, "located")


def test_a_self_test_knows_a_bundle_that_does_not_generate(tmp_path: Path) -> None:
    built = build_small(tmp_path, ["slots"])
    outcome = ae.self_test(built.folder, kinds=list(ENGINES))
    assert {fault.status for fault in outcome.faults} == {"not applicable"}
