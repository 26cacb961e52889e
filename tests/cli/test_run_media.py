"""`run --image` and `--audio`: answers to files, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_media import LABELS, noise, png, wav

from adapter_export.runtime import Bundle


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        path.write_bytes(png(noise(20, 30, 3, seed=number)))
    return paths


def test_run_answers_image_files(cli, vit_folder: Path, images: list[Path]) -> None:
    options = [word for path in images for word in ("--image", path)]
    found = cli.json("run", vit_folder / "bundle", *options)["rows"]
    assert [one["text"] for one in found] == [str(path) for path in images]
    expected = Bundle.open(vit_folder / "bundle").files("image").answer(images)
    for one, said in zip(found, expected, strict=True):
        assert set(one["probabilities"]) == set(LABELS)
        assert one["probability"] == pytest.approx(said.document()["probability"], abs=1e-6)
    many = cli.done("run", vit_folder / "bundle", "--many", *options).stdout
    assert many.count('"label"') == 2


def test_inspect_shows_the_steps(cli, vit_folder: Path) -> None:
    assert "resize → rescale → normalize" in cli.done("inspect", vit_folder / "bundle").stdout


def test_unreadable_media_files_are_refused(cli, vit_folder: Path, images: list[Path], tmp_path: Path) -> None:
    bundle, half, sound = vit_folder / "bundle", tmp_path / "half.png", tmp_path / "x.wav"
    half.write_bytes(images[0].read_bytes()[:900])
    sound.write_bytes(wav(noise(100) / 256))
    cli.refused(3, "half.png: is not a readable image", "run", bundle, "--image", half)
    cli.refused(3, "half.png", "run", bundle, "--many", "--image", images[0], "--image", half)
    cli.refused(3, "does not exist", "run", bundle, "--image", tmp_path / "nothing.png")
    cli.refused(3, "has no preprocessing record for audio files", "run", bundle, "--audio", sound)
    cli.refused(2, "reads images, not texts", "run", bundle, "--text", "How far?")
    cli.refused(2, "exclude each other", "run", bundle, "--image", half, "--audio", sound)
