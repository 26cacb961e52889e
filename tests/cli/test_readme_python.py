"""The Python code of the README runs unchanged."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_python_code_of_the_readme_classifies(
    cli, hf_folder: Path, graph: Path, adapters: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    listed = f"questions={adapters / 'topic'},messages={adapters / 'tone'}"
    text = ("--tokenizer", hf_folder, "--max-tokens", 80)
    cli.done("build", graph, *text, "--adapters", listed, "-o", tmp_path / "bundle")
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - the README's own lines
    found = capsys.readouterr().out
    assert re.search(r"label='[abc]'", found)
    assert re.search(r"label='(bad|good)'", found)
