"""No client sends reports to Microsoft, as ONNX Runtime 1.29 and later do by default."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from clients import Client

DEVICE = Path(".cache", "Microsoft", "DeveloperTools", ".onnxruntime", "deviceid")
"""The file below the home folder that names the machine in reports; it is made before the first one."""


def reports(client: Client, bundle: Path, home: Path, **environment: str) -> bool:
    """Return whether a run created the files of reports. CI variables that disable them are not passed on."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    around = {**kept, "HOME": str(home), **client.environment, **environment}
    words = [*client.command, "verify", str(bundle)]
    done = subprocess.run(words, env=around, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (home / DEVICE).exists()


@pytest.mark.parametrize("client", ["cpp_client", "node_client", "python_client"], indirect=True)
def test_telemetry_is_off(client: Client, small_bundle: Path, tmp_path: Path) -> None:
    assert not reports(client, small_bundle, tmp_path / "home")


def test_telemetry_can_be_turned_on(node_client: Client, small_bundle: Path, tmp_path: Path) -> None:
    """Control: the test above can fail."""
    assert reports(node_client, small_bundle, tmp_path / "home", ORT_DISABLE_TELEMETRY="0")
