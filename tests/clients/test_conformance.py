"""Every client reproduces the golden vectors of one bundle, in every flavour that its binding can run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

CLIENTS = ("cpp_client", "node_client", "python_client")
NAMES = ("wide", "narrow", "first")
BAKED = ("wide",)

Finding = tuple[str, str | None, bool]


def _expected(flavours: Iterable[str]) -> set[Finding]:
    """The base and all adapters in each flavour, a mixed batch in the bank, and what is baked in."""
    found: set[Finding] = set()
    for flavour in flavours:
        subjects = BAKED if flavour == "baked" else (None, *NAMES)
        found |= {(flavour, name, False) for name in subjects}
    return found | {(flavour, None, True) for flavour in flavours if flavour in ("bank", "mixture")}


def _facts(findings: list[dict[str, Any]]) -> set[Finding]:
    assert all(0 < finding["worst"] <= 1 for finding in findings)
    return {(finding["flavour"], finding["adapter"], finding["mixed"]) for finding in findings}


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_the_golden_vectors_hold(client: Any, conformance_bundle: Path) -> None:
    assert _facts(client.verify(conformance_bundle)) == _expected(client.flavours)


def test_the_golden_vectors_hold_in_a_browser(browser_example: Path, conformance_bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    words = ["node", "verify.mjs", conformance_bundle, picture]
    done = subprocess.run(words, cwd=browser_example, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert _facts(json.loads(done.stdout)) == _expected({"inputs", "bank", "mixture", "baked"})
    assert picture.stat().st_size > 10_000


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _link_out(path: Path) -> None:
    outside = path.parents[1].with_name("outside")
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(_flip, "changed or damaged", id="flipped bit"),
        pytest.param(_truncate, "another size", id="truncated"),
        pytest.param(os.remove, "narrow.safetensors", id="missing"),
        pytest.param(_link_out, "a link that leads out of the bundle", id="link out of the folder"),
    ],
)
def test_damaged_files_are_refused(
    client: Any, copied_bundle: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(copied_bundle / "adapters" / "narrow.safetensors")
    client.refuses(words, "verify", copied_bundle)


def _edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda d: d.update(version="2.0.0"), "major version|format version", id="newer major version"),
        pytest.param(lambda d: d["files"][0].update(path="../outside"), "may leave its folder", id="parent"),
        pytest.param(lambda d: d["files"][0].update(path="/etc/passwd"), "may leave its folder", id="absolute"),
        pytest.param(lambda d: d["adapters"].append(d["adapters"][0]), "one name|occurs twice", id="one name twice"),
        pytest.param(
            lambda d: d["slots"][0].update(name="input_ids"), "one name|name of a data", id="slot like an input"
        ),
    ],
)
def test_manifests_that_cannot_be_right_are_refused(
    client: Any, copied_bundle: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    _edit(copied_bundle, change)
    client.refuses(words, "verify", copied_bundle)


def test_a_wrong_answer_is_seen(client: Any, copied_bundle: Path) -> None:
    """Golden vectors that say something else, with hashes that are right."""
    name = "golden/narrow.safetensors"
    path = copied_bundle / name
    data = bytearray(path.read_bytes())
    data[-4:] = b"\x00\x00\x80\x3f"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    _edit(copied_bundle, lambda d: [f.update(sha256=digest) for f in d["files"] if f["path"] == name])
    client.refuses("does not compute what the reference computed", "verify", copied_bundle)


def test_nothing_is_no_bundle(client: Any, tmp_path: Path) -> None:
    client.refuses("manifest.json", "verify", tmp_path)
