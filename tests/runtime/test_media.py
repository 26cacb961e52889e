"""Images and audio: preprocessing steps and refused files."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from small_media import encoded, noise, png, wav

from adapter_export.errors import DataError, RequestError
from adapter_export.modalities import FILE_MODALITIES
from adapter_export.modalities.audio import Fit, Standardize
from adapter_export.modalities.image import CenterCrop, Normalize, Rescale, ResizeShortestEdge

IMAGE, AUDIO = FILE_MODALITIES["image"], FILE_MODALITIES["audio"]
TONE = 0.5 * np.sin(np.arange(800) / 9)


def test_image_steps_match_values_by_hand() -> None:
    pixels = noise(9, 13, 3)
    normal = Normalize("normalize", (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    found = IMAGE.apply(pixels, (CenterCrop("center_crop", 4, 6), Rescale("rescale", 1 / 255), normal))
    expected = (pixels[2:6, 3:9] / 255 - np.array(normal.mean)) / np.array(normal.std)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(("shape", "expected"), [((20, 31, 3), (8, 12)), ((31, 20, 3), (12, 8)), ((7, 7, 3), (8, 8))])
def test_the_shorter_edge_gets_a_length(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert IMAGE.apply(noise(*shape), (ResizeShortestEdge("resize_shortest_edge", 8, "bilinear"),)).shape == (
        3,
        *expected,
    )


def test_audio_steps_match_values_by_hand() -> None:
    clip = TONE.astype(np.float32)
    assert AUDIO.apply(clip, (Fit("fit", 900),)).tolist() == [*clip, *[0] * 100]
    assert AUDIO.apply(clip, (Fit("fit", 700),)).tolist() == clip[:700].tolist()
    found = AUDIO.apply(clip, (Standardize("standardize", 1e-7),))
    np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_clips_of_any_sample_width_are_read(width: int) -> None:
    found = AUDIO.read(wav(TONE, width=width), 16_000, "x.wav")
    np.testing.assert_allclose(found, TONE, atol=1.6 / 2 ** (8 * width - 1) + 1e-6)


def test_an_image_is_upright_and_in_rgb() -> None:
    pixels = noise(8, 12, 3)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90° clockwise
    data = encoded(Image.fromarray(pixels), "PNG", exif=turned.tobytes())
    assert np.array_equal(IMAGE.read(data, None, "x.png"), np.rot90(pixels, -1))
    assert np.array_equal(IMAGE.read(png(pixels[..., 0]), None, "x.png")[..., 2], pixels[..., 0])


JPEG = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
TWO = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {  # made when they are needed: the bomb takes long
    "no image": (lambda: b'{"a": 1}', "cannot identify"),
    "empty": (lambda: b"", "cannot identify"),
    "half a JPEG": (lambda: JPEG[: len(JPEG) // 2], "truncated"),
    "half a PNG": (lambda: png(noise(64, 64, 3))[:3000], "truncated"),
    "a bomb": (lambda: encoded(Image.new("1", (20_000, 9000)), "PNG"), "too large"),
    "16 bits": (lambda: encoded(Image.new("I;16", (8, 8)), "PNG"), "I;16"),
    "two images": (lambda: encoded(TWO[0], "GIF", save_all=True, append_images=TWO[1:]), "2 images"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_file_that_is_no_image_is_refused(name: str) -> None:
    make, said = IMAGES[name]
    data = make()
    with pytest.raises(DataError, match=said) as caught:
        IMAGE.read(data, None, "x.png")
    assert caught.value.where == "x.png"


def _float_wav() -> bytes:
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 44, b"WAVE", b"fmt ", 16, 3, 1, 16_000, 64_000, 4, 32, b"data", 8)
    return head + np.zeros(2, "<f4").tobytes()


CLIPS = {
    "no clip": (b"RIFF and no more", "WAV"),
    "empty file": (b"", "WAV"),
    "another rate": (wav(TONE, rate=44_100), "44,100 Hz"),
    "stereo": (wav(TONE, channels=2), "2 channels"),
    "no samples": (wav(TONE[:0]), "0 samples"),
    "truncated": (wav(TONE)[:-300], "samples of 800"),
    "samples that are too wide": (wav(TONE)[:34] + (272).to_bytes(2, "little") + wav(TONE)[36:], "samples of 272 bits"),
    "floats": (_float_wav(), "unknown format"),
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_file_that_is_no_clip_is_refused(name: str) -> None:
    data, said = CLIPS[name]
    with pytest.raises(DataError, match=said):
        AUDIO.read(data, 16_000, "x.wav")


@pytest.mark.parametrize("name", CLIPS)
def test_the_length_of_a_file_that_is_no_clip_is_refused(name: str) -> None:
    data, message = CLIPS[name]
    with pytest.raises(DataError, match=message):
        AUDIO.size(data, 16_000, "x.wav")


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_that_the_steps_cut_are_not_decoded(width: int) -> None:
    file, numbers = io.BytesIO(), np.random.default_rng(0).integers(0, 256, 900 * width).astype(np.uint8)
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(width)
        writer.setframerate(16_000)
        writer.writeframes(numbers.tobytes())
    data = file.getvalue()
    whole = AUDIO.read(data, 16_000, "x.wav")
    assert AUDIO.size(data, 16_000, "x.wav") == len(whole) == 900
    np.testing.assert_array_equal(AUDIO.read(data, 16_000, "x.wav", 70), whole[:70])
    signed = [
        int.from_bytes(numbers[at : at + width].tobytes(), "little", signed=width > 1) for at in range(0, 900, width)
    ]
    exact = np.array([number / 2 ** (8 * width - 1) - (width == 1) for number in signed])
    np.testing.assert_array_equal(whole[: len(exact)], exact.astype(np.float32))


@pytest.mark.parametrize(
    "array", [noise(4, 4), noise(4, 4, 4), noise(0, 4, 3), TONE], ids=["grey", "rgba", "0", "clip"]
)
def test_an_array_of_another_form_is_refused(array: np.ndarray) -> None:
    with pytest.raises(RequestError, match="is not a valid image"):
        IMAGE.contents(array, None, "image 0")
