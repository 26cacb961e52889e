"""The client in Node runs what it compared with its hashes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from clients import Client, last_line


def test_what_is_written_over_its_files_changes_nothing(
    node_client: Client, damaged_bundle: Path, three_rows: Path, tmp_path: Path
) -> None:
    node, program = node_client.command
    script = replace(node_client, command=(node, str(Path(__file__).with_name("live.mjs"))))
    (tmp_path / "large").mkdir()
    done = script.call(Path(program).parent, damaged_bundle, three_rows, TMPDIR=str(tmp_path / "large"))
    assert done.returncode == 0, last_line(done) or done.returncode
    before, after = json.loads(done.stdout)
    assert before[0][0]["label"]
    assert before == after
    assert list((tmp_path / "large").glob("adapter-bundle-*")) == []
