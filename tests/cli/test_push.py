"""`push` and `pull`: from a folder to a registry and back, by the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from oci_registry import OciRegistry

import adapter_export as ae


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_EXPORT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("a", "b"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.pem").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(public)
    return folder


def test_a_signed_bundle_goes_and_comes(
    cli: Any, bundle: Path, keys: Path, registry: OciRegistry, tmp_path: Path
) -> None:
    signed, reference = shutil.copytree(bundle, tmp_path / "signed"), f"oci://{registry.host}/cli/signed:1"
    cli.done("sign", signed, "--key", keys / "a.pem")
    sent = cli.json("push", signed, reference, "--license", "mit", "--base-model", "me/base")
    out, again = tmp_path / "out", tmp_path / "again"
    shown = cli.done("pull", reference, "-o", out, "--key", keys / "a.pub", "--expect", sent["digest"]).stderr
    assert f"pulled {sent['pinned']}: bundle in {out}" in shown
    assert "me/base" in (out / "README.md").read_text()
    cli.done("verify", out, "--key", keys / "a.pub")
    for code, words, options in (
        (3, "was signed with another key", ("--key", keys / "b.pub")),
        (3, "does not match the expected digest", ("--expect", "0" * 64)),
        (2, "pass either `--key` or `--certificate`", ("--key", keys / "a.pub", "--certificate", keys / "a.pub")),
    ):
        cli.refused(code, words, "pull", reference, "-o", again, *options)
    assert not again.exists()
    cli.refused(3, "already exists", "pull", reference, "-o", out)
    cli.done("pull", sent["pinned"], "-o", out, "--force")
    # a custom card goes with the bundle, and unsupported contents are rejected
    cli.refused(2, "are for a card that is made; found the `README.md`", "push", out, reference, "--base-model", "a/b")
    cli.refused(2, "the bundle is signed with the model card", "push", out, reference, "--card", out / "README.md")


def test_an_unsigned_bundle_is_refused_with_a_key(
    cli: Any, bundle: Path, keys: Path, registry: OciRegistry, tmp_path: Path
) -> None:
    reference = f"oci://{registry.host}/cli/unsigned"
    (tmp_path / "card.md").write_text("# Mine\n")
    cli.done("push", bundle, reference, "--card", tmp_path / "card.md")
    cli.refused(3, "is not signed", "pull", reference, "-o", tmp_path / "out", "--key", keys / "a.pub")
    pulled = cli.json("pull", reference)
    assert (Path(pulled["path"]) / "README.md").read_text() == "# Mine\n"
    after = shutil.copytree(pulled["path"], tmp_path / "after")
    assert "the outdated model card" in cli.done("remove", after, "tone").stderr
    assert "# A bundle of adapter-export" in (after / "README.md").read_text()


def test_an_adapter_goes_comes_and_is_built_in(
    cli: Any, model: Path, adapters: Path, bundle: Path, registry: OciRegistry, tmp_path: Path
) -> None:
    reference = f"oci://{registry.host}/cli/topic:1"
    found = cli("push", adapters / "topic", reference)
    assert "the model card names no license: `--license` gives one" in found.stderr
    out = tmp_path / "topic"
    pulled = ae.pull(reference, out)
    assert pulled.kind == "adapter"
    assert json.loads(cli.done("inspect", out, "--json").stdout)["name"] == "topic"
    assert (out / "weights.safetensors").read_bytes() == (adapters / "topic" / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("bundle", "is not a reference to a hub or registry"),
        ("hf://name", "is not a reference"),
        ("hf://owner/name@", "is not a reference"),
        ("hf://../name", "is not a reference"),
        ("oci://host", "is not a reference"),
        ("oci://host/Upper", "repositories of registries are lower-case"),
        ("oci://host/a@sha256:12", "is not a reference"),
        ("oci://host/a/../b:1", "is not a reference"),
        ("https://host/a", "is not a reference"),
    ],
)
def test_invalid_references_are_refused(reference: str, words: str, cli: Any, bundle: Path) -> None:
    cli.refused(2, words, "pull", reference)
    cli.refused(2, words, "push", bundle, reference)
