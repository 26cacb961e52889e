"""`identify` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_llama import example, run_builder


@pytest.mark.extended
@pytest.mark.usefixtures("genai_is_there")
def test_the_proof_is_shown_and_written(cli, tmp_path: Path) -> None:
    example("make_tiny").save_llama(tmp_path / "llama")
    run_builder(tmp_path / "llama", tmp_path / "model", "int4")
    command = ("identify", tmp_path / "model", "--weights", tmp_path / "llama")
    done = cli.done(*command)
    assert "layers.1.mlp.down_proj.weight" in done.stdout
    assert "21 weights equal within rounding; none is left over" in done.stderr
    made = cli.json(*command, "--force")
    written = json.loads((tmp_path / "model" / "base_identity.json").read_text())
    assert {key: made[key] for key in written} == written
    cli.refused(3, "already", *command)
    assert {each["stored"] for each in made["weights"]} == {"float32", "int4 in blocks of 32"}


def test_a_folder_that_is_none_is_refused_before_torch_is_needed(cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    cli.refused(3, "is not an onnxruntime-genai folder", "identify", tmp_path, "--weights", tmp_path)
    cli.refused(3, "does not exist", "identify", tmp_path / "none", "--weights", tmp_path)
