"""The Node client runs exactly the bytes that it compared with their hashes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from clients import Client, alike, last_line


def test_overwritten_bundle_files_do_not_change_answers(
    node_client: Client, damaged_bundle: Path, three_rows: Path, tmp_path: Path
) -> None:
    node, program = node_client.command
    script = replace(node_client.alone(), command=(node, str(Path(__file__).with_name("live.mjs"))))
    (tmp_path / "large").mkdir()
    done = script.call(Path(program).parent, damaged_bundle, three_rows, TMPDIR=str(tmp_path / "large"))
    assert done.returncode == 0, last_line(done) or done.returncode
    before, after = json.loads(done.stdout)
    assert before[0][0]["label"]
    assert before == after
    assert list((tmp_path / "large").glob("adapter-bundle-*")) == []


def test_repeated_texts_reuse_the_prefix_cache(node_client: Client, small_bundle: Path, three_rows: Path) -> None:
    node, program = node_client.command
    script = replace(node_client.alone(), command=(node, str(Path(__file__).with_name("kept.mjs"))))
    done = script.call(Path(program).parent, small_bundle, three_rows)
    assert done.returncode == 0, last_line(done) or done.returncode
    kept, nothing_kept, plain = json.loads(done.stdout)
    assert kept["answers"][2] == kept["answers"][0] != kept["answers"][1]
    assert kept["prefixes"] == {"hits": 3, "loads": 3, "evictions": 0, "resident": 3}
    assert nothing_kept["answers"] == kept["answers"]
    assert nothing_kept["prefixes"] == {"hits": 0, "loads": 6, "evictions": 6, "resident": 0}
    alike(kept["answers"], plain["answers"])
    assert plain["prefixes"] is None
