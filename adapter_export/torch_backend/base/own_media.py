"""The processor of a Hugging Face folder: what transformers computes of pictures and clips, and steps that do so."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import transformers

from adapter_export.errors import BaseModelError, InputError, MissingExtraError, Note, within
from adapter_export.format.media import (
    ABSOLUTE,
    GOLDEN_MEDIA_FILE,
    MEDIA_VERSION,
    PROCESSOR_FILE,
    CapturedMedia,
    GoldenMedia,
    GoldenSample,
    MediaRecord,
    Medium,
    Step,
    UnknownStepsError,
    processor_digest,
    steps_of,
)
from adapter_export.reading.documents import parse_json, read_json
from adapter_export.reading.parsers import parsing
from adapter_export.runtime.media import WORDS, apply_steps, pillow, read_medium
from adapter_export.torch_backend.base.quiet import LIBRARY_ERRORS, first_line, quiet

_TYPES: Mapping[str, Medium] = {"image_processor_type": "image", "feature_extractor_type": "audio"}
"""The fields by which a file says what its processor reads."""

_INPUTS = ("pixel_values", "input_features", "input_values")
"""What processors make, by the names of Hugging Face."""


class OwnProcessor:
    """A processor of transformers, from the text of its `preprocessor_config.json`; pictures go through Pillow.

    Raises:
        BaseModelError: transformers cannot make one of it.
    """

    def __init__(self, text: str, medium: Medium) -> None:
        self.medium = medium
        with TemporaryDirectory(prefix="adapter-export-") as folder:
            Path(folder, PROCESSOR_FILE).write_text(text, encoding="utf-8")
            self._processor = _opened(Path(folder), medium)

    @property
    def name(self) -> str:
        """The library, its version and the class, for people."""
        return f"transformers {transformers.__version__} {type(self._processor).__name__}"

    @property
    def input(self) -> str:
        """The input that it makes."""
        names = [name for name in self._processor.model_input_names if name in _INPUTS]
        if not names:
            raise BaseModelError("makes none of the inputs that are known", expected=", ".join(_INPUTS))
        return str(names[0])

    @property
    def sampling_rate(self) -> int | None:
        """Of clips, in Hz."""
        return int(self._processor.sampling_rate) if self.medium == "audio" else None

    def __call__(self, contents: Sequence[np.ndarray], name: str) -> np.ndarray:
        """Return the input `name`, float32, a row for each picture [height, width, 3] or clip [samples].

        Raises:
            BaseModelError: transformers refuses them, such as clips of different lengths.
        """
        options = {} if self.medium == "image" else {"sampling_rate": self.sampling_rate}
        with quiet():
            try:
                rows = [self._processor(one, return_tensors="np", **options)[name] for one in contents]
                return np.concatenate(rows).astype(np.float32)
            except LIBRARY_ERRORS as error:
                raise BaseModelError(
                    f"the processor cannot read {WORDS[self.medium]}s", where=self.name, found=first_line(error)
                ) from error


def _opened(folder: Path, medium: Medium) -> Any:
    options = {"backend": "pil"} if medium == "image" else {}
    auto: Any = transformers.AutoImageProcessor if medium == "image" else transformers.AutoFeatureExtractor

    def refusal(reason: str) -> BaseModelError:
        return BaseModelError("transformers cannot use the processor", found=reason)

    with quiet(), parsing(refusal):
        return auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)


def own_media(folder: Path) -> tuple[CapturedMedia | None, tuple[str, ...]]:
    """Return what the processor of a folder does, and notes.

    None for a folder without a processor of pictures or clips. Steps are those that its fields name, if on sample media
    they give what transformers gives; else the record says why there are none.
    """
    files = [file for file in (PROCESSOR_FILE, "processor_config.json") if (folder / file).is_file()]
    if not files:
        return None, ()
    try:
        fields = read_json(folder / files[0])
        kinds = [medium for name, medium in _TYPES.items() if isinstance(fields, dict) and name in fields]
        if len(kinds) != 1:  # that of texts, of several media, or of a release that did not say it
            return None, (Note(f"the processor is left out: `{files[0]}` does not say what it reads"),)
        medium = kinds[0]
        text = str(_opened(folder, medium).to_json_string())
        processor = OwnProcessor(text, medium)
        name = processor.input
    except InputError as error:
        return None, (Note(f"the processor is left out: {error.message.rstrip('.')}"),)
    steps: tuple[Step, ...] | None = None
    golden, unknown = None, None
    try:
        every: Any = parse_json(text.encode(), PROCESSOR_FILE)  # with the values that the file leaves out
        steps = steps_of(every, medium)
        samples = tuple(_samples(processor, name, steps))
    except MissingExtraError as error:
        steps, unknown = None, f"could not be compared with transformers ({error.what})"
    except (UnknownStepsError, InputError) as error:
        steps, unknown = None, error.message.rstrip(".") if isinstance(error, InputError) else str(error)
    digest = processor_digest(steps, processor.sampling_rate, text)
    if steps is not None:
        golden = GoldenMedia(MEDIA_VERSION, digest, processor.name, ABSOLUTE, samples)
    where = None if golden is None else GOLDEN_MEDIA_FILE
    record = MediaRecord(medium, name, PROCESSOR_FILE, digest, processor.sampling_rate, steps, unknown, where)
    notes = () if unknown is None else (Note(f"no client can read {WORDS[medium]}s: the processor {unknown}"),)
    return CapturedMedia(record, text, golden), notes


def _samples(processor: OwnProcessor, name: str, steps: Sequence[Step]) -> Iterator[GoldenSample]:
    """Yield samples with what transformers makes of them; UnknownStepsError where the steps make something else."""
    rate = processor.sampling_rate
    files = _pictures() if rate is None else _clips(rate)
    for title, file in files.items():
        contents = read_medium(file, processor.medium, rate, title)
        with within(title):
            expected = processor([contents], name)[0]
        found = apply_steps(contents, steps)
        if found.shape != expected.shape or not np.abs(found - expected).max() <= ABSOLUTE:
            what = f"{list(expected.shape)}, not {list(found.shape)}"
            if found.shape == expected.shape:
                what = f"off by {np.abs(found - expected).max():.2g}"
            raise UnknownStepsError(f"does something else than its fields say ({title}: {what})")
        yield GoldenSample.of(title, file, expected)


def _pictures() -> dict[str, bytes]:
    """Pictures in colours, in grey and with transparency, wide, high and square; PNG, which all readers read alike."""
    drawn, found = np.random.default_rng(0), {}
    for title, shape in (("wide", (43, 61, 3)), ("high in grey", (70, 31)), ("clear", (29, 29, 4))):
        smooth = np.cumsum(drawn.normal(0, 9, shape), axis=1) + drawn.normal(128, 40, shape)
        file = io.BytesIO()
        pillow("Image").fromarray(np.clip(smooth, 0, 255).astype(np.uint8)).save(file, "PNG")
        found[title] = file.getvalue()
    return found


def _clips(rate: int) -> dict[str, bytes]:
    """Tones in noise of a quarter and of half a second, WAV of 16 bits."""
    drawn, found = np.random.default_rng(0), {}
    for title, seconds, pitch in (("low", 0.25, 220), ("high", 0.5, 1760)):
        times = np.arange(int(seconds * rate)) / rate
        samples = 0.4 * np.sin(2 * np.pi * pitch * times) + drawn.normal(0, 0.05, len(times))
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(rate)
            writer.writeframes((samples * 32767).astype("<i2").tobytes())
        found[title] = file.getvalue()
    return found
