"""`sweep` on the command line."""

from __future__ import annotations

from pathlib import Path

ROWS = "text\tlabel\n" + "".join(f"{word} film\tgood\n{word} play\tbad\n" for word in ("who", "how", "many", "the"))


def test_a_full_disk_is_an_error_and_what_is_finished_stays(cli, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.tsv"
    data.write_text(ROWS, encoding="utf-8")
    call = ("sweep", model, "--data", data, "--kinds", "ia3", "--seeds", "0,1", "--epochs", "1", "-o", tmp_path / "s")
    cli.refused(3, "could not be written", *call, file_size=2000)
    assert [path.name for path in (tmp_path / "s").iterdir() if path.name != ".lock"] == ["sweep.json"]
    done = cli.done(*call)
    assert "sweep  2/2" in done.stderr
    assert "ia3-0.001-seed1: " in done.stderr
    assert "best on the validation rows: `ia3-0.001`" in done.stderr
    assert " ia3    –" in done.stdout
    made = cli.json(*call)
    assert made["adapter"] in ("ia3-0.001-seed0", "ia3-0.001-seed1")
    assert [one["score"] is not None for one in made["trials"][0]["runs"]] == [True, True]
