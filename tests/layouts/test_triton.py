"""Triton's model repository, by the schema and the rules of Triton, which is not here itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from clients import alike
from servers import free_port, running

import adapter_export as ae

TEXTS = ["who wrote it?", "a bad film."]


def test_a_client_sends_an_adapter_and_gets_its_answers(
    bundle: Path, slim: dict[str, str], platform_python: str, tmp_path: Path
) -> None:
    shipped = ae.ship(bundle, tmp_path / "triton", layout="triton", name="small")
    assert {"model_repository/small/1/model.onnx", "model_repository/small-bank/config.pbtxt"} <= set(shipped.files)
    assert not (shipped.folder / "model_repository/small/1/bank.bin").exists()
    port = free_port()
    rules = [platform_python, Path(__file__).with_name("triton_rules.py"), shipped.folder / "model_repository", port]
    with running(rules, tmp_path, slim, (tmp_path / "ready").exists):

        def call(adapter: str, *options: str) -> subprocess.CompletedProcess[str]:
            client = [platform_python, str(shipped.folder / "client" / "triton_client.py"), str(bundle)]
            given = ["--url", f"127.0.0.1:{port}", "--adapter", adapter, *options]
            texts = [word for text in TEXTS for word in ("--text", text)]
            words = [*client, *given, *texts]
            return subprocess.run(words, env=slim, capture_output=True, text=True, check=False)

        expected = [one.document() for one in ae.open_bundle(bundle).texts().answer(TEXTS, "tone")]
        for model in (["--model", "small"], ["--model", "small-bank", "--by", "bank"]):
            done = call("tone", *model)
            assert done.returncode == 0, done.stderr
            alike([json.loads(line) for line in done.stdout.splitlines()], expected)
        refused = call("tone", "--model", "small", "--by", "bank")
    assert "unexpected inference input 'adapter_ids'" in refused.stderr
