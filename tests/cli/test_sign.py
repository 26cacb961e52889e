"""`adapter-export sign`, and `verify --key` and `--certificate`: who made a bundle. All keys are made here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from jsonschema import Draft202012Validator
from make_schemas import schema_text

import adapter_export as ae
from adapter_export.format.manifest_json import read_manifest, write_manifest
from adapter_export.runtime import Bundle

PASSWORD = "ADAPTER_EXPORT_KEY_PASSWORD"


def _write_keys(folder: Path, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    for ending, sealed in (("pem", NoEncryption()), ("sealed.pem", BestAvailableEncryption(b"open"))):
        (folder / f"{name}.{ending}").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)


def _certificate(
    name: str, key: ec.EllipticCurvePublicKey, issuer: str, by: ec.EllipticCurvePrivateKey, *, authority: bool
) -> bytes:
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=authority, crl_sign=False, decipher_only=False, **usage
            ),
            critical=True,
        )
    )
    return made.sign(by, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys `a` and `b`, with and without a password, `a.crt` by the authority `ca.crt`, and another authority."""
    folder = tmp_path_factory.mktemp("keys")
    a, b, root = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    for name, key in (("a", a), ("b", b), ("rsa", rsa.generate_private_key(65537, 2048))):
        _write_keys(folder, name, key)
    for name, subject, key, issuer, by in (
        ("ca", "root", root, "root", root),
        ("other", "other root", b, "other root", b),
    ):
        (folder / f"{name}.crt").write_bytes(_certificate(subject, key.public_key(), issuer, by, authority=True))
    (folder / "a.crt").write_bytes(_certificate("release team", a.public_key(), "root", root, authority=False))
    return folder


@pytest.fixture(scope="module")
def signed(cli, bundle: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, signed by `a`, with the report of its check."""
    folder = shutil.copytree(bundle, tmp_path_factory.mktemp("signed") / "bundle")
    report = folder.with_name("report.json")
    report.write_text(
        cli.done("check", folder, "--quick", "--only", "tone", "--variant", "slots", "--json").stdout, "utf-8"
    )
    made = cli.json("sign", folder, "--key", keys / "a.pem", "--report", report)
    assert {"manifest.json", "base.bin", "check.json"} <= {*made["files"]}
    assert "model.sig" not in made["files"]
    return folder


@pytest.fixture
def copy(signed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(signed, tmp_path / "bundle")


def test_verify_accepts_a_signed_bundle(cli, signed: Path, keys: Path) -> None:
    found = cli.json("verify", signed, "--key", keys / "a.pub")
    assert found["verdict"] == "passed"
    signature = ae.verify_signature(signed, key=keys / "a.pub")
    assert signature.digest == cli.json("inspect", signed)["digest"]
    assert Bundle.open(signed, expect=signature.digest).verified
    cli.refused(
        3, "does not match the expected bundle", "verify", signed, "--key", keys / "a.pub", "--expect", 64 * "0"
    )
    cli.refused(3, "already exists", "sign", signed, "--key", keys / "a.pem")


@pytest.mark.starts_program
def test_the_next_steps_after_signing_can_be_pasted(cli, bundle: Path, keys: Path, tmp_path: Path) -> None:
    folder, key = shutil.copytree(bundle, tmp_path / "a bundle"), shutil.copy(keys / "a.pem", tmp_path / "my key.pem")
    made = cli.done("sign", folder, "--key", key).stderr
    export, verify = re.findall(r"^ *(?:Next|and): (.*)$", made, re.MULTILINE)
    subprocess.run(shlex.split(export), check=True)
    assert "passed" in cli.done(*shlex.split(verify)[1:]).stdout


def test_inspect_names_the_signer(cli, signed: Path, copy: Path, keys: Path) -> None:
    public = load_pem_public_key((keys / "a.pub").read_bytes())
    digest = sha256(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    told, held = cli.json("inspect", signed), cli.json("inspect", signed, "--key", keys / "a.pub")
    assert told["signature"] == {"method": "key", "signer": digest, "verified": False}
    assert held["signature"] == {**told["signature"], "verified": True}
    for found in (told, held):
        Draft202012Validator(json.loads(schema_text("signature-claim"))).validate(found["signature"])
    assert f"by the key of sha256 {digest}, not verified" in cli.done("inspect", signed).stdout
    assert f"by the key of sha256 {digest}, verified" in cli.done("inspect", signed, "--key", keys / "a.pub").stdout
    cli.refused(3, "was signed with another key", "inspect", signed, "--key", keys / "b.pub")
    ae.sign(copy, key=keys / "a.pem", certificate=keys / "a.crt", force=True)
    certificate = x509.load_pem_x509_certificate((keys / "a.crt").read_bytes())
    expected = {"method": "certificate", "signer": certificate.fingerprint(hashes.SHA256()).hex(), "verified": False}
    assert ae.inspect(copy).to_json()["signature"] == expected
    (copy / "model.sig").write_text("{}")
    assert ae.inspect(copy).to_json()["signature"] == {"method": "unknown", "signer": None, "verified": False}
    (copy / "model.sig").unlink()
    assert ae.inspect(copy).to_json()["signature"] is None
    cli.refused(3, "is not signed", "inspect", copy, "--key", keys / "a.pub")
    cli.refused(2, "only bundles are signed", "inspect", copy / "adapters" / "tone", "--key", keys / "a.pub")


def test_signature_survives_renaming_hidden_files_and_links(copy: Path, keys: Path) -> None:
    moved = copy.rename(copy.with_name("moved"))
    (moved / ".DS_Store").write_bytes(b"put there by a system")
    link = copy.with_name("current")
    link.symlink_to(moved)
    assert ae.verify_signature(link, key=keys / "a.pub").signer.startswith("key ")


@pytest.mark.extended
def test_command_of_model_signing_verifies_the_signature(signed: Path, keys: Path) -> None:
    program = Path(sys.executable).with_name("model_signing")
    words = [program, "verify", "key", signed, "--signature", signed / "model.sig", "--public_key", keys / "a.pub"]
    subprocess.run(words, check=True, capture_output=True)


def test_an_authority_vouches_for_the_signer(cli, copy: Path, keys: Path) -> None:
    cli.done("sign", copy, "--key", keys / "a.pem", "--certificate", keys / "a.crt", "--force")
    assert "signed by CN=release team" in cli.done("verify", copy, "--certificate", keys / "ca.crt", "--verbose").stdout
    words = "signed under a certificate that the chain does not cover"
    cli.refused(3, words, "verify", copy, "--certificate", keys / "other.crt")
    cli.refused(3, "with a certificate, not with a key", "verify", copy, "--key", keys / "a.pub")
    cli.refused(2, "pass either", "verify", copy, "--key", keys / "a.pub", "--certificate", keys / "ca.crt")
    wrong = ("--certificate", keys / "a.crt", "--force")
    cli.refused(3, "does not match", "sign", copy, "--key", keys / "b.pem", *wrong)
    cli.refused(3, "password", "sign", copy, "--key", keys / "a.sealed.pem", *wrong)


def _by_another(copy: Path, keys: Path) -> None:
    ae.sign(copy, key=keys / "b.pem", force=True)


def _changed(copy: Path, keys: Path) -> None:
    """With a checksum that is right."""
    write_manifest(replace(read_manifest(copy), producer="somebody else"), copy)


def _weights(copy: Path, keys: Path) -> None:
    with (copy / "base.bin").open("r+b") as file:
        file.write(b"\xff")


def _of_another_bundle(copy: Path, keys: Path) -> None:
    """The same key has signed another folder, whose files this bundle has too."""
    from model_signing import signing

    other = copy.with_name("other")
    other.mkdir()
    shutil.copy(copy / "base.bin", other)
    signing.Config().use_elliptic_key_signer(private_key=keys / "a.pem").sign(other, copy / "model.sig")


def _flipped(copy: Path, keys: Path) -> None:
    document = json.loads((copy / "model.sig").read_text())
    document["dsseEnvelope"]["signatures"][0]["sig"] = (
        "MEUC" + document["dsseEnvelope"]["signatures"][0]["sig"][4:][::-1]
    )
    (copy / "model.sig").write_text(json.dumps(document))


def _two_payloads(copy: Path, keys: Path) -> None:
    """The library reads names with `_`, too: one payload would be verified, and another one read."""
    document = json.loads((copy / "model.sig").read_text())
    document["dsse_envelope"] = document["dsseEnvelope"]
    (copy / "model.sig").write_text(json.dumps(document))


BAD = {
    "unsigned": (lambda copy, keys: (copy / "model.sig").unlink(), "is not signed; expected `model.sig`"),
    "by another": (_by_another, "was signed with another key"),
    "changed manifest": (_changed, "does not match its signature; found `manifest.json`"),
    "changed weights": (_weights, "does not match its signature; found `base.bin`"),
    "another bundle": (_of_another_bundle, "does not cover; found `check.json`, `manifest.json`"),
    "a flipped signature": (_flipped, "is not a valid signature"),
    "two payloads": (_two_payloads, "is not a signature"),
    "no JSON": (lambda copy, keys: (copy / "model.sig").write_text("{"), "is not valid JSON"),
    "no signature": (lambda copy, keys: (copy / "model.sig").write_text("[1]"), "is not a signature"),
    "a FIFO": (lambda copy, keys: _fifo(copy / "model.sig"), "is not a regular file"),
    "a report put in later": (
        lambda copy, keys: (
            (copy / "check.json").unlink(),
            ae.sign(copy, key=keys / "a.pem", force=True),
            (copy / "check.json").write_text("{}"),
        ),
        "does not cover; found `check.json`",
    ),
}


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("what", BAD)
def test_invalid_signatures_are_refused(cli, copy: Path, keys: Path, what: str) -> None:
    change, words = BAD[what]
    change(copy, keys)
    done = cli.refused(3, words, "verify", copy, "--key", keys / "a.pub", "--json")
    assert json.loads(done.stdout)["exit_code"] == 3


@pytest.mark.parametrize(
    ("key", "password", "words"),
    [
        ("a.sealed.pem", None, "password of the key is missing or wrong"),
        ("a.sealed.pem", "shut", "password of the key is missing or wrong"),
        ("a.pub", None, "cannot be used to sign or to verify"),
        ("rsa.pem", None, "cannot be used to sign or to verify"),
        ("nobody.pem", None, "does not exist"),
    ],
)
def test_invalid_keys_cannot_sign(
    cli, copy: Path, keys: Path, monkeypatch, key: str, password: str | None, words: str
) -> None:
    before = (copy / "model.sig").read_bytes()
    if password is not None:
        monkeypatch.setenv(PASSWORD, password)
    cli.refused(3, words, "sign", copy, "--key", keys / key, "--force")
    assert (copy / "model.sig").read_bytes() == before


def test_encrypted_keys_sign_with_their_password(cli, copy: Path, keys: Path, monkeypatch) -> None:
    monkeypatch.setenv(PASSWORD, "open")
    cli.done("sign", copy, "--key", keys / "a.sealed.pem", "--force")
    assert ae.verify_signature(copy, key=keys / "a.pub").files
    for wrong in ("a.pem", "rsa.pub"):
        cli.refused(3, "cannot be used to sign or to verify", "verify", copy, "--key", keys / wrong)


def test_failed_reports_and_damaged_bundles_are_not_signed(cli, copy: Path, keys: Path) -> None:
    """A report that failed or is on another bundle, and a bundle that is damaged."""
    document = json.loads((copy / "check.json").read_text("utf-8"))
    report = copy.with_name("report.json")
    for change, words in (({"verdict": "failed"}, "a failed check"), ({"digest": 64 * "0"}, "on another bundle")):
        report.write_text(json.dumps({**document, **change}), "utf-8")
        cli.refused(3, words, "sign", copy, "--key", keys / "a.pem", "--report", report, "--force")
    _weights(copy, keys)
    cli.refused(3, "base.bin: has been changed or damaged", "sign", copy, "--key", keys / "a.pem", "--force")


def test_a_changed_bundle_is_not_signed_any_more(cli, copy: Path, keys: Path) -> None:
    done = cli.done("remove", copy, "tone")
    assert "removed the signature, which this change invalidates" in " ".join(done.stderr.split())
    assert not {"model.sig", "check.json"} & {path.name for path in copy.iterdir()}
    cli.refused(3, "is not signed", "verify", copy, "--key", keys / "a.pub")


def test_verify_names_the_missing_signing_extra(cli, signed: Path, keys: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    cli.refused(2, "pip install 'adapter-export[sign]'", "verify", signed, "--key", keys / "a.pub")
