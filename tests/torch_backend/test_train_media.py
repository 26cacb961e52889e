"""Training on images and audio: folders and tables, the record, and data that cannot be used."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heard import Heard
from small_media import noise, png, wav

import adapter_export as ae
from adapter_export.bases.opening import unopened
from adapter_export.errors import DataError, RequestError, UsageError
from adapter_export.graph.adapter import Adapter

COLOURS = {"red": (220, 40, 40), "green": (40, 220, 40), "blue": (40, 40, 220)}
ROWS = 12


def image(colour: str, seed: int) -> bytes:
    """Return a colour with noise, which a mean over pixels distinguishes from others."""
    return png((np.array(COLOURS[colour]) * 0.6 + noise(12, 20, 3, seed=seed) * 0.4).astype(np.uint8))


def make_folder(folder: Path, first: int = 0, rows: int = ROWS) -> Path:
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        for seed in range(first, first + rows):
            (folder / colour / f"{seed}.png").write_bytes(image(colour, seed))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `train`, and `test` with other images."""
    root = tmp_path_factory.mktemp("colours")
    make_folder(root / "test", ROWS, 4)
    make_folder(root / "train")
    return root


@pytest.fixture(scope="module")
def trained(vit_folder: Path, data: Path) -> Adapter:
    options = {"bottleneck": 4, "epochs": 8, "learning_rate": 0.02, "batch_size": 8}
    return ae.train(vit_folder / "model.pt", data / "train", name="colours", test_data=data / "test", **options)


def test_training_on_a_folder_learns_and_records_its_classes(trained: Adapter, vit_folder: Path) -> None:
    base = ae.open_base(vit_folder / "model.pt")
    assert trained.head is not None
    task = trained.head.task
    assert task is not None
    assert base.media is not None
    assert (task.input, task.processor, task.tokenizer) == ("image", base.media.record.digest, None)
    assert task.labels == ("blue", "green", "red")
    assert trained.training["test"]["accuracy"] > 0.8
    assert trained.training["data"]["training"]["rows"] == 3 * ROWS


def test_the_bundle_confirms_the_record_and_a_table_is_the_same_data(
    trained: Adapter, vit_folder: Path, data: Path, tmp_path: Path
) -> None:
    bundle = ae.build(vit_folder / "model.pt", [trained], tmp_path / "bundle", without_base_head=True)
    found = ae.evaluate(bundle, data / "test", resamples=0, against=vit_folder / "model.pt")
    found.raise_for_failure()
    assert found.training_record is not None
    assert found.training_record.part == "test"
    assert found.versus is not None
    assert found.versus.differing == ()
    table = tmp_path / "test.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for path in sorted((data / "test").rglob("*.png")):
            writer.writerow([path, path.parent.name])
    again = ae.evaluate(bundle, table, resamples=0)
    assert again.scores == found.scores
    assert again.sha256 == found.sha256
    assert again.training_record is not None
    ae.add(bundle, {"again": trained}, against=vit_folder / "model.pt")
    sets = json.loads((tmp_path / "bundle" / "golden" / "media.json").read_text())["sets"]
    assert [one["adapter"] for one in sets] == ["colours", "again"]
    assert sets[0]["answers"] == sets[1]["answers"]
    bundle = ae.remove(bundle, ["again"])
    session = bundle.session()
    answers = bundle.files("image", session).answer(sorted((data / "test" / "red").glob("*.png")), "colours")
    assert sum(answer.document()["label"] == "red" for answer in answers) >= 3


def test_images_of_the_same_bytes_are_one_row(vit_folder: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data / "test", tmp_path / "data")
    shutil.copy(folder / "red" / "12.png", folder / "red" / "copy.png")
    heard = Heard()
    adapter = ae.train(vit_folder / "model.pt", folder, name="x", epochs=1, bottleneck=2, reporter=heard)
    assert adapter.training["data"]["training"]["repeated_rows_left_out"] == 1
    assert any("repeats another row" in note for note in heard.notes)


def _half(folder: Path) -> None:
    path = folder / "red" / "0.png"
    path.write_bytes(path.read_bytes()[:300])


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "half an image": (_half, r"red/0\.png: is not a readable image"),
    "an empty file": (lambda folder: (folder / "red" / "0.png").write_bytes(b""), "an empty file"),
    "a text": (lambda folder: (folder / "red" / "notes.txt").write_text("red"), "notes.txt: is not a readable image"),
    "a label without images": (lambda folder: (folder / "none").mkdir(), "a label without files"),
    "an image beside the folders": (lambda folder: (folder / "x.png").write_bytes(image("red", 99)), r"x\.png"),
    "one label": (lambda folder: [shutil.rmtree(folder / name) for name in ("red", "blue")], "fewer than two classes"),
    "nothing": (lambda folder: [shutil.rmtree(folder / name) for name in COLOURS], "found nothing"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_unusable_data_folders_are_refused(name: str, vit_folder: Path, data: Path, tmp_path: Path) -> None:
    damage, said = FOLDERS[name]
    folder = shutil.copytree(data / "train", tmp_path / "data")
    damage(folder)
    with pytest.raises(DataError, match=said):
        ae.train(vit_folder / "model.pt", folder)


def test_missing_media_files_and_columns_are_refused(vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image,label\nnothing.png,a\n")
    with pytest.raises(DataError, match=r"line 2: a file that cannot be read; found .*nothing\.png"):
        ae.train(vit_folder / "model.pt", tmp_path / "x.csv")
    (tmp_path / "y.csv").write_text("text,label\nhow far,a\n")
    with pytest.raises(DataError, match="no column `image`"):
        ae.train(vit_folder / "model.pt", tmp_path / "y.csv")


def test_modality_of_an_archive_is_known_before_opening(
    vit_folder: Path, tiny_bert_archive: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes((vit_folder / "model.pt").read_bytes()[:4000])
    places = (vit_folder / "model.pt", tiny_bert_archive, vit_folder / "hf", damaged)
    bases = [unopened(place) for place in places]
    assert [base.reads for base in bases] == ["image", "text", None, None]
    assert not any(base.is_open for base in bases)


def test_text_options_are_refused_for_media(vit_folder: Path, data: Path) -> None:
    for options in ({"max_tokens": 8}, {"truncation": "left"}, {"pair": "second", "task": "ranking"}):
        with pytest.raises(UsageError, match="applies to texts only"):
            ae.train(vit_folder / "model.pt", data / "train", **options)
    with pytest.raises(UsageError, match="`token` reads texts"):
        ae.train(vit_folder / "model.pt", data / "train", task="token")


def test_a_base_without_a_processor_says_so(vit_folder: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit_folder / "hf", tmp_path / "hf")
    (folder / "preprocessor_config.json").unlink()
    base = ae.capture(folder, tmp_path / "model.pt")
    assert base.media is None
    with pytest.raises(UsageError, match="does not record its image or audio preprocessing"):
        ae.train(base, data / "train")


def test_a_folder_is_no_table_of_texts(tiny_bert_archive: Path, data: Path) -> None:
    from adapter_export.format.tabular.labelled import Columns, labelled_rows

    with pytest.raises(DataError, match="is not a table"):
        labelled_rows(data / "train", Columns(), "single_label")


def make_clips(folder: Path, seconds: float = 0.1) -> Path:
    """Write low and high tones with noise."""
    for label, pitch in (("low", 300), ("high", 2400)):
        (folder / label).mkdir(parents=True)
        for seed in range(8):
            drawn, times = np.random.default_rng(seed), np.arange(int(seconds * 16_000)) / 16_000
            tone = 0.5 * np.sin(2 * np.pi * pitch * times + seed) + drawn.normal(0, 0.02, len(times))
            (folder / label / f"{seed}.wav").write_bytes(wav(tone))
    return folder


def test_clips_are_learnt_and_answered_by_whispers_encoder(tmp_path: Path) -> None:
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from adapter_export.torch_backend.base.own_processors import own_media
    from adapter_export.torch_backend.base.torch_base import captured_base, write_base

    config = WhisperConfig(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        num_mel_bins=20,
        max_source_positions=50,
    )
    torch.manual_seed(0)
    encoder = WhisperEncoder(config)
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "position" not in name:
                weight.normal_(0, 0.2)
    WhisperFeatureExtractor(feature_size=20, chunk_length=1).save_pretrained(tmp_path / "processor")
    media, _ = own_media(tmp_path / "processor")
    assert media is not None
    base = captured_base(encoder, {"input_features": torch.zeros(1, 20, 100)})
    write_base(replace(base, media=media), tmp_path / "model.pt")
    clips = make_clips(tmp_path / "clips", 0.8)
    adapter = ae.train(tmp_path / "model.pt", clips, name="pitch", epochs=15, batch_size=4, learning_rate=0.01)
    bundle = ae.build(tmp_path / "model.pt", [adapter], tmp_path / "bundle", variants=("slots",))
    found = ae.evaluate(bundle, clips, resamples=0)
    assert found.scores["accuracy"].value is not None
    assert found.scores["accuracy"].value > 0.8
    (tmp_path / "stereo.wav").write_bytes(wav(noise(800) / 256, channels=2))
    with pytest.raises(DataError, match="2 channels"):
        bundle.files("audio").answer([tmp_path / "stereo.wav"], "pitch")
    (tmp_path / "long.wav").write_bytes(wav(np.tile(noise(800) / 256, 25)))
    reader = bundle.files("audio")
    assert reader.answer([tmp_path / "long.wav"], "pitch")[0].cut == 20_000 - 16_000
    with pytest.raises(RequestError, match="4,000 samples more"):
        reader.read([tmp_path / "long.wav"], "pitch", long="refuse")
    with pytest.raises(RequestError, match="not split into windows"):
        reader.read([tmp_path / "long.wav"], "pitch", long="windows")


def test_clips_of_different_lengths_are_trained_without_padding(tmp_path: Path) -> None:
    """Wav2Vec2 has no mask: each call has files of one length, and the bundle confirms the scores."""
    import torch
    import transformers as hf

    from adapter_export.torch_backend.base.own_processors import own_media
    from adapter_export.torch_backend.base.torch_base import captured_base, write_base

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    torch.manual_seed(0)
    model = hf.Wav2Vec2Model(hf.Wav2Vec2Config(conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), **sizes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
    hf.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "processor")
    axes = {"input_values": {0: "batch", 1: "samples"}}
    example = {"input_values": torch.randn(2, 400)}
    media, _ = own_media(tmp_path / "processor")
    write_base(replace(captured_base(model, example, axes=axes), media=media), tmp_path / "model.pt")
    for part, seconds in (("short", 0.03), ("middle", 0.04), ("long", 0.05)):
        make_clips(tmp_path / part, seconds)
    for label in ("low", "high"):
        for part in ("short", "middle", "long"):
            for number, file in enumerate(sorted((tmp_path / part / label).iterdir())):
                place = tmp_path / ("test" if number < 3 else "learn") / label
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place / f"{part}-{file.name}")
    heard = Heard()
    adapter = ae.train(
        tmp_path / "model.pt",
        tmp_path / "learn",
        test_data=tmp_path / "test",
        name="pitch",
        epochs=2,
        batch_size=4,
        bottleneck=4,
        reporter=heard,
    )
    assert "padding changes results: only rows of equal length share a batch" in heard.notes
    bundle = ae.build(tmp_path / "model.pt", [adapter], tmp_path / "bundle", variants=("slots",))
    found = ae.evaluate(bundle, tmp_path / "test", resamples=0)
    assert found.training_record is not None
    assert found.training_record.passed
