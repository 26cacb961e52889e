"""A server refuses bundles that fail their golden data, at the start and at a reload."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from served import made_app
from tampering import edit_adapter, scaled

from adapter_export.errors import FormatError
from adapter_export.format.manifest_json import read_manifest
from adapter_export.plugins.serve.server_settings import SessionSettings


@pytest.fixture
def wrong(film: Path, tmp_path: Path) -> Path:
    """A bundle with correct hashes, whose adapter does not match its golden vectors."""
    copy = shutil.copytree(film, tmp_path / "film")
    _damage(copy)
    return copy


def _damage(bundle: Path) -> None:
    slot = next(s.name for s in read_manifest(bundle).slots if s.site != "head" and len(s.axes) == 2)
    edit_adapter(bundle, "topic", scaled(slot, 1.5))


@pytest.mark.parametrize("options", [[], ["--workers", "2"]])
@pytest.mark.extended
def test_a_server_refuses_to_start(wrong: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "adapter_export", "serve", str(wrong), "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == FormatError.exit_code == 3
    assert "adapter `topic`: does not compute what the reference computed" in " ".join(done.stderr.split())
    assert "listening" not in done.stdout


def test_adapters_that_load_on_demand_are_not_run(wrong: Path) -> None:
    with made_app(wrong, sessions=SessionSettings(resident=1), quiet=True) as client:
        assert client.get("/v2/health/ready").status_code == 200


def test_the_old_bundle_stays_in_use(film: Path, tmp_path: Path) -> None:
    place = shutil.copytree(film, tmp_path / "film")
    with made_app(place, quiet=True) as client:
        _damage(place)
        answer = client.post("/v2/repository/models/film/load")
        assert answer.status_code == 400
        assert "does not compute what the reference computed" in answer.text
        assert client.get("/v2/health/ready").status_code == 200
