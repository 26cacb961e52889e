"""A processor as steps, compared with transformers, and bundles with a wrong record of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from small_media import LABELS, noise, png, wav
from tampering import rehash

import adapter_export as ae
from adapter_export.errors import AdapterError, RequestError
from adapter_export.format.manifest import Manifest
from adapter_export.format.media import MediaRecord
from adapter_export.modalities import FILE_MODALITIES
from adapter_export.modalities.image import Normalize
from adapter_export.torch_backend.base.own_processors import own_media

SCHEMAS = Path(__file__).parents[2] / "schemas"

PROCESSORS: dict[str, tuple[Callable[[], Any], str]] = {
    "vit": (hf.ViTImageProcessorPil, "resize rescale normalize"),
    "clip": (hf.CLIPImageProcessorPil, "resize_shortest_edge center_crop rescale normalize"),
    "whisper": (lambda: hf.WhisperFeatureExtractor(chunk_length=2), "fit log_mel"),
    "wav2vec2": (hf.Wav2Vec2FeatureExtractor, "standardize"),
    "raw": (lambda: hf.Wav2Vec2FeatureExtractor(do_normalize=False), ""),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_steps_give_what_transformers_gives(name: str, tmp_path: Path) -> None:
    make, steps = PROCESSORS[name]
    processor = make()
    processor.save_pretrained(tmp_path)
    media, notes = own_media(tmp_path)
    assert media is not None
    assert notes == ()
    record = media.record
    assert record.steps is not None
    assert " ".join(step.op for step in record.steps) == steps
    if record.medium == "image":  # a file that capture does not compare
        data = png(noise(50, 33, 3, seed=3))
        expected = processor(Image.fromarray(noise(50, 33, 3, seed=3)), return_tensors="np")[record.input][0]
    else:
        data = wav(np.random.default_rng(3).normal(0, 0.1, 9000).clip(-1, 1))
        clip = FILE_MODALITIES["audio"].contents(data, 16_000, "x")
        expected = processor(clip, sampling_rate=16_000, return_tensors="np")[record.input][0]
    found = record.modality.apply(record.read(data, "x"), record.steps)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: hf.ConvNextImageProcessorPil(), "crop_pct"),
        (lambda: hf.ViTImageProcessorPil(image_mean=[0.5], image_std=[0.5]), "1 channel"),
        (lambda: hf.CLIPImageProcessorPil(crop_size={"height": 300, "width": 224}), "crops beyond"),
        (lambda: hf.WhisperFeatureExtractor(dither=0.1), "noise"),
        (lambda: hf.ASTFeatureExtractor(num_mel_bins=20), "max_length"),
    ],
    ids=["crop_pct", "grey", "pads", "dither", "ast"],
)
def test_unsupported_processor_fields_are_recorded_as_unknown(
    make: Callable[[], Any], said: str, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path)
    media, notes = own_media(tmp_path)
    assert media is not None
    assert (media.record.steps, media.record.golden, media.golden) == (None, None, None)
    assert said in str(media.record.unknown)
    assert said in notes[0]


def test_a_class_that_does_more_than_its_fields_say_is_found_out(tmp_path: Path) -> None:
    hf.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps({**fields, "image_processor_type": "GLPNImageProcessor"}))  # rounds sizes to 32
    media, _ = own_media(tmp_path)
    assert media is not None
    assert media.record.steps is None


def test_missing_or_broken_processors_are_left_out(tmp_path: Path) -> None:
    assert own_media(tmp_path) == (None, ())
    (tmp_path / "preprocessor_config.json").write_text("[]")
    assert "does not record its modality" in own_media(tmp_path)[1][0]
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchProcessor"}')
    media, notes = own_media(tmp_path)
    assert media is None
    assert "the processor is left out" in notes[0]


def test_the_bundle_answers_images_as_transformers_does(vit_folder: Path, tmp_path: Path) -> None:
    model = hf.ViTForImageClassification.from_pretrained(vit_folder / "hf").eval()
    processor = hf.ViTImageProcessorPil.from_pretrained(vit_folder / "hf")
    pixels = [noise(20, 30, 3), noise(40, 9, 3, seed=1)]
    (tmp_path / "x.png").write_bytes(png(pixels[0]))
    with torch.no_grad():
        logits = [model(**processor(Image.fromarray(one), return_tensors="pt")).logits[0] for one in pixels]
    expected = [one.softmax(-1).numpy() for one in logits]
    found = ae.open_bundle(vit_folder / "bundle").files("image").answer([tmp_path / "x.png", pixels[1]])
    for said, wanted in zip(found, expected, strict=True):
        assert list(said.document()["probabilities"]) == list(LABELS)
        np.testing.assert_allclose(list(said.document()["probabilities"].values()), wanted, atol=1e-5)


def test_golden_media_follow_their_schema_and_are_replayed(vit_folder: Path) -> None:
    document = json.loads((vit_folder / "bundle" / "golden" / "media.json").read_text())
    schema = json.loads((SCHEMAS / "golden-media.schema.json").read_text())
    jsonschema.validate(document, schema)
    assert [one["adapter"] for one in document["sets"]] == ["base-head"]
    report = ae.check(vit_folder / "bundle", against=vit_folder / "model.pt")
    report.raise_for_failure()
    found = {one.subject: one for one in report.findings if one.check == "golden media"}
    assert set(found) == {"base", "base-head", "model"}
    assert "transformers" in str(found["base"].detail)


def _media(change: Callable[[MediaRecord], MediaRecord]) -> Callable[[Manifest], Manifest]:
    def changed(manifest: Manifest) -> Manifest:
        assert manifest.media is not None
        return replace(manifest, media=change(manifest.media))

    return changed


def _other_mean(record: MediaRecord) -> MediaRecord:
    assert record.steps is not None
    return replace(record, steps=(*record.steps[:-1], Normalize("normalize", (0.4, 0.5, 0.5), (0.2, 0.3, 0.25))))


def _other_answer(folder: Path) -> None:
    path = folder / "golden" / "media.json"
    document = json.loads(path.read_text())
    answer = document["sets"][0]["answers"][0]["answer"]
    answer["probability"] += 0.01
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "change", "said"),
    [
        (lambda folder: None, _media(_other_mean), "error "),
        (lambda folder: None, _media(lambda record: replace(record, digest="0" * 64)), "made with the processor"),
        (_other_answer, lambda manifest: manifest, "probability"),
    ],
    ids=["mean", "digest", "answer"],
)
def test_a_record_that_says_something_else_fails(
    damage: Callable[[Path], None], change: Callable[[Manifest], Manifest], said: str, vit_folder: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(vit_folder / "bundle", tmp_path / "bundle")
    damage(bundle)
    rehash(bundle, change)
    report = ae.verify(bundle)
    faults = [one for one in report.findings if one.status == "failed"]
    assert [one.check for one in faults] == ["golden media"]
    assert said in str(faults[0].detail)


def test_unsupported_media_requests_are_refused(vit_folder: Path, tmp_path: Path) -> None:
    bundle = ae.open_bundle(vit_folder / "bundle")
    with pytest.raises(RequestError, match="has no preprocessing record for audio files"):
        bundle.files("audio")
    with pytest.raises(RequestError, match="a processor of images"):
        bundle.texts()
    with pytest.raises(RequestError, match="a list of images"):
        bundle.files("image").answer([])
    unknown = replace(bundle.manifest.media, steps=None, unknown="has the field `crop_pct`", golden=None)
    with pytest.raises(RequestError, match="`crop_pct`, which this client does not support"):
        replace(bundle, manifest=replace(bundle.manifest, media=unknown)).files("image")


def test_an_adapter_of_another_processor_is_refused(vit_folder: Path, tmp_path: Path) -> None:
    base = ae.open_base(vit_folder / "model.pt")
    own = base.base_head
    assert own is not None
    assert own.head is not None
    assert own.head.task is not None
    other = replace(own, name="other", head=replace(own.head, task=replace(own.head.task, processor="0" * 64)))
    with pytest.raises(AdapterError, match="another processor"):
        ae.build(base, [other], tmp_path / "bundle")
