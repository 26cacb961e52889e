"""A bundle verifies itself: every variant, every adapter, separately and in mixed batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deployment import write_over
from small_bundle import Built
from small_disk import small_disk
from tampering import edit, rehash

import adapter_export as ae
from adapter_export.bundle.proof.proof_plan import plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.report import Report
from adapter_export.errors import FileError
from adapter_export.reporting import Reporter


@pytest.mark.parametrize("call", [ae.check, ae.verify])
def test_files_overwritten_during_a_check_change_nothing(built: Built, copy: Path, call: Callable[..., Report]) -> None:
    """Overwriting files during a check has no effect, and the report names the original bundle."""

    class Overwriting(Reporter):
        begun = 0

        def step(self, label: str, done: int = 0, total: int | None = None) -> None:
            if done == 0:
                self.begun += 1
                write_over(copy)

    reporter = Overwriting()
    found, expected = call(copy, reporter=reporter), call(built.folder)
    assert reporter.begun == 1
    assert found.passed
    assert found == replace(expected, bundle=str(copy))


def test_verify_names_missing_space_for_the_private_copy(built: Built) -> None:
    with small_disk(1_000), pytest.raises(FileError, match=r"no room for a private copy.*TMPDIR") as caught:
        ae.verify(built.folder)
    assert str(built.folder) in str(caught.value)
    assert "copy=False" not in str(caught.value), "which `verify` does not offer"


NAMES = {None, "topic", "tone", "mood"}


def _verify(folder: Path) -> Report:
    return prove(plan_check(folder, quick=True), None)


def test_verify_covers_every_variant_and_adapter(built: Built) -> None:
    found = _verify(built.folder)
    assert found.passed
    forms = {*built.manifest.graphs, *("baked" for record in built.manifest.adapters if record.baked)}
    assert {one.variant for one in found.outputs} == forms
    for form in built.manifest.graphs:
        assert {one.adapter for one in found.outputs if one.variant == form and not one.mixed} == NAMES
    assert {one.adapter for one in found.outputs if one.mixed} == NAMES
    for one in found.outputs:
        assert one.elements > 0
        assert 0 <= one.ratio < 1
        assert not one.faults
    assert {"files", "schema", "graph", "adapter files", "bank rows"} <= {one.check for one in found.findings}


def test_a_golden_vector_that_is_off_is_found_in_every_form(copy: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            if name.endswith(".output.logits"):
                tensors[name] += np.float32(0.01)

    edit(copy / "golden/tone.safetensors", change)
    rehash(copy)
    found = _verify(copy)
    assert not found.passed
    off = {(one.variant, one.adapter) for one in found.outputs if one.faults}
    forms = {one.variant for one in found.outputs if one.adapter == "tone"}
    assert off == {(form, "tone") for form in forms}
    assert all(one.ratio > 1 for one in found.outputs if one.faults)
