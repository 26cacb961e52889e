"""The files of a bundle are those that the manifest lists, or an error says which is not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from adapter_export.errors import FileError, FormatError, HashError
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import list_files, verify_files, write_manifest


def test_file_list_contains_all_files_but_the_manifest(manifest: Manifest, bundle: Path) -> None:
    write_manifest(manifest, bundle)
    found = list_files(bundle)
    assert found == manifest.files
    assert [record.path for record in found] == [
        "adapters/tiny-1.0.onnx_adapter",
        "adapters/tiny-1.0.safetensors",
        "adapters/tiny-1.0/adapter_graph.json",
        "adapters/tiny-1.0/weights.safetensors",
        "base.bin",
        "golden/base.safetensors",
        "golden/texts.json",
        "golden/tiny-1.0.safetensors",
        "model.onnx",
        "tokenizer.json",
    ]
    data = (bundle / "base.bin").read_bytes()
    record = next(record for record in found if record.path == "base.bin")
    assert (record.sha256, record.bytes) == (hashlib.sha256(data).hexdigest(), len(data))


def test_complete_bundle_passes_verification(manifest: Manifest, bundle: Path) -> None:
    verify_files(manifest, bundle)


@pytest.mark.parametrize("path", ["base.bin", "adapters/tiny-1.0/weights.safetensors"])
def test_missing_files_are_named(manifest: Manifest, bundle: Path, path: str) -> None:
    (bundle / path).unlink()
    with pytest.raises(FileError, match="is missing from the bundle") as caught:
        verify_files(manifest, bundle)
    assert caught.value.where == str(bundle / path)


def test_folder_in_place_of_a_file_is_refused(manifest: Manifest, bundle: Path) -> None:
    (bundle / "base.bin").unlink()
    (bundle / "base.bin").mkdir()
    with pytest.raises(FileError, match="is missing from the bundle"):
        verify_files(manifest, bundle)


def test_truncated_files_are_refused(manifest: Manifest, bundle: Path) -> None:
    (bundle / "base.bin").write_bytes((bundle / "base.bin").read_bytes()[:-1])
    with pytest.raises(FormatError, match="recorded size"):
        verify_files(manifest, bundle)


def test_damaged_files_fail_their_hash(manifest: Manifest, bundle: Path) -> None:
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[0] ^= 1
    (bundle / "model.onnx").write_bytes(data)
    with pytest.raises(HashError) as caught:
        verify_files(manifest, bundle)
    assert caught.value.where == str(bundle / "model.onnx")


def test_links_out_of_the_bundle_are_refused(manifest: Manifest, bundle: Path, tmp_path: Path) -> None:
    """A link within the bundle is a file like others; one that leads out could change what runs."""
    (bundle / "base.bin").rename(bundle / ".shared.bin")
    (bundle / "base.bin").symlink_to(".shared.bin")
    verify_files(manifest, bundle)
    (bundle / ".shared.bin").rename(tmp_path / "outside.bin")
    (bundle / "base.bin").unlink()
    (bundle / "base.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(FileError, match="outside the bundle"):
        verify_files(manifest, bundle)


def test_a_bundle_behind_a_link_is_whole(manifest: Manifest, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    verify_files(manifest, tmp_path / "link")


@pytest.mark.parametrize("name", ["more.bin", "adapters/tiny-1.0/notes.txt", "golden/old/base.safetensors", "Base.bin"])
def test_unlisted_files_are_refused(manifest: Manifest, bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"more")
    with pytest.raises(FormatError, match=rf"does not list; found `{name}`; expected .* the 10 listed files"):
        verify_files(manifest, bundle)


@pytest.mark.parametrize("target", [".", "..", "nowhere"])
def test_unlisted_links_are_refused(manifest: Manifest, bundle: Path, target: str) -> None:
    (bundle / "more").symlink_to(target)
    with pytest.raises(FormatError, match="does not list; found `more`"):
        verify_files(manifest, bundle)


def test_hidden_files_are_ignored(manifest: Manifest, bundle: Path) -> None:
    (bundle / ".DS_Store").write_bytes(b"by the system")
    (bundle / ".cache").mkdir()
    (bundle / ".cache/entry").write_bytes(b"by a downloader")
    verify_files(manifest, bundle)
    assert list_files(bundle) == manifest.files


def test_empty_folders_are_no_files(manifest: Manifest, bundle: Path) -> None:
    (bundle / "empty").mkdir()
    verify_files(manifest, bundle)


def test_folders_behind_an_outside_link_are_refused(manifest: Manifest, bundle: Path, tmp_path: Path) -> None:
    (bundle / "golden").rename(tmp_path / "golden")
    (bundle / "golden").symlink_to(tmp_path / "golden")
    with pytest.raises((FileError, FormatError), match=r"outside the bundle|does not list; found `golden`"):
        verify_files(manifest, bundle)


def test_manifest_linked_to_an_outside_file_is_refused(manifest: Manifest, bundle: Path) -> None:
    write_manifest(manifest, bundle)
    path = bundle / "manifest.json"
    path.rename(bundle / ".manifest")
    path.symlink_to(".manifest")
    verify_files(manifest, bundle)
    (bundle / ".manifest").rename(bundle.parent / "elsewhere")
    path.unlink()
    path.symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(FileError, match=r"manifest\.json: is a link to a file outside the bundle"):
        verify_files(manifest, bundle)
