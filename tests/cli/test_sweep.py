"""`sweep` on the command line."""

from __future__ import annotations

from pathlib import Path

ROWS = [f"{word} film\tgood\n{word} play\tbad\n" for word in ("who", "how", "many", "the")]


def test_full_disk_keeps_finished_trainings(cli, model: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "train.tsv", tmp_path / "sweep"
    data.write_text("text\tlabel\n" + "".join(ROWS), encoding="utf-8")
    options = ("--kinds", "ia3,pfeiffer", "--bottlenecks", "4096", "--seeds", "0", "--epochs", "1", "-o", output)
    found = cli.refused(3, "could not be written", "sweep", model, "--data", data, *options, file_size=800_000)
    assert "ia3-0.001-seed0: " in found.stderr
    assert [path.name for path in (output / "runs").iterdir() if path.suffix != ".partial"] == ["ia3-0.001-seed0"]
    kept = (output / "runs" / "ia3-0.001-seed0" / "weights.safetensors").stat().st_mtime_ns
    done = cli.done("sweep", model, "--data", data, *options)
    assert (output / "runs" / "ia3-0.001-seed0" / "weights.safetensors").stat().st_mtime_ns == kept
    assert "sweep  2/2" in done.stderr
    assert "best on the validation rows: `" in done.stderr
    assert "pfeiffer    4096" in done.stdout
    made = cli.json("sweep", model, "--data", data, *options)
    assert [one["setting"]["kind"] for one in made["trials"]] == ["ia3", "pfeiffer"]
    assert made["adapter"] in [run["adapter"] for run in made["best"]["runs"]]
