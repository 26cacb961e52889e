"""Proof of sessions by golden data; golden parts detect partly applied adapters."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from coarse_bundle import build_coarse
from once import once
from small_bundle import build_small
from tampering import edit, edit_adapter, rehash, scaled

from adapter_export.errors import FormatError, HashError
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import read_manifest
from adapter_export.runtime import Bundle, check_session

SITE, UP = "layers.0.attention", "adapter.layers.0.ffn.up.weight"


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in 8 bits, whose budgets hide sites of `a`; shared, so read-only."""

    return once(tmp_path_factory, "runtime_coarse", partial(build_coarse, variants=[])) / "bundle"


@pytest.fixture
def copy(coarse: Path, tmp_path: Path) -> Path:
    return shutil.copytree(coarse, tmp_path / "bundle")


def _check(folder: Path, *adapters: str) -> None:
    bundle = Bundle.open(folder)
    check_session(bundle, bundle.session(threads=1), adapters or None)


def _elsewhere(manifest: Manifest) -> Manifest:
    """Return a manifest whose runs were recorded with another runtime."""
    assert manifest.recorded is not None
    return replace(manifest, recorded=replace(manifest.recorded, runtime="1.0.0"))


def _turn_off(folder: Path, adapter: str) -> None:
    """Give the slots of a site their neutral values."""
    slots = [slot for slot in read_manifest(folder).slots if slot.site == SITE]

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors |= {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in slots}

    edit_adapter(folder, adapter, change)


@pytest.mark.parametrize("change", [lambda manifest: manifest, _elsewhere])
def test_a_right_bundle_passes(copy: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Recorded bits are compared, or golden vectors and parts with another runtime."""
    rehash(copy, change)
    _check(copy)


@pytest.mark.parametrize("change", [lambda manifest: manifest, _elsewhere])
def test_a_site_that_is_off_is_named(copy: Path, change: Callable[[Manifest], Manifest]) -> None:
    _turn_off(copy, "a")
    rehash(copy, change)
    with pytest.raises(FormatError, match=f"adapter `a`: applies an adapter in part.*`{SITE} off`"):
        _check(copy)
    _check(copy, "b")  # others are not run


def test_golden_vectors_alone_pass(copy: Path) -> None:
    """Golden vectors miss this fault, which golden parts detect."""
    _turn_off(copy, "a")

    def without_parts(manifest: Manifest) -> Manifest:
        adapters = tuple(replace(one, golden=replace(one.golden, parts=None)) for one in manifest.adapters)
        return replace(manifest, adapters=adapters)

    rehash(copy, without_parts)
    shutil.rmtree(copy / "golden" / "parts")
    rehash(copy)
    _check(copy)


def test_golden_vectors_decide_where_budgets_are_narrow(built: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(built, tmp_path / "bundle")
    name = read_manifest(copy).adapters[0].name
    slot = next(slot.name for slot in read_manifest(copy).slots if slot.site != "head" and len(slot.axes) == 2)
    edit_adapter(copy, name, scaled(slot, 1.5))
    with pytest.raises(FormatError, match=r"does not compute what the reference computed.*deviates by"):
        _check(copy)


def test_a_base_that_is_off_is_refused(copy: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if ".output." in name]:
            tensors[name][...] = np.nan

    edit(copy / "golden" / "base.safetensors", change)
    rehash(copy, _elsewhere)
    with pytest.raises(FormatError, match="does not compute what the reference computed; found `hidden` in"):
        _check(copy)


def test_golden_data_that_changed_are_refused(copy: Path) -> None:
    bundle = Bundle.open(copy)
    path = copy / bundle.manifest.golden.path
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\1\0")
    with pytest.raises(HashError, match=r"base\.safetensors"):
        check_session(bundle, bundle.session(threads=1))


def test_golden_data_that_are_no_tensors_are_refused(copy: Path) -> None:
    (copy / "golden" / "base.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 no header here")
    rehash(copy)
    with pytest.raises(FormatError, match="is not valid JSON"):
        _check(copy)


def test_checksums_of_slots_are_passed_over(tmp_path: Path) -> None:
    """Sessions do not return checksums."""
    _check(build_small(tmp_path, ["slots"], checksums=True).folder)
