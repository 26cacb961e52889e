"""Preprocessing by transformers with the files of a Hugging Face folder: texts to ids, images and audio to inputs.

Provides the inputs for a capture, the golden texts and media of the base, and steps that preprocess images and audio
identically without transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from torch import Tensor

from adapter_export.errors import BaseModelError, InputError, MissingExtraError, within
from adapter_export.format.golden_texts import (
    GOLDEN_TEXTS_VERSION,
    GoldenText,
    GoldenTexts,
    GoldenTextSet,
    different,
    sample_texts,
)
from adapter_export.format.media import (
    ABSOLUTE,
    GOLDEN_MEDIA_FILE,
    MEDIA_VERSION,
    PROCESSOR_FILE,
    CapturedMedia,
    GoldenMedia,
    GoldenSample,
    MediaRecord,
    processor_digest,
)
from adapter_export.modalities import FILE_MODALITIES
from adapter_export.modalities.modality import FileModality, Step, UnknownStepsError
from adapter_export.safe_io.documents import parse_json, read_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_text
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.tables import number_of
from adapter_export.text import TOKENIZER_FILE, Pair, Tokenizer, try_tokenizer
from adapter_export.torch_backend.base.example_inputs import SAMPLES, Prepared
from adapter_export.torch_backend.base.log_capture import LIBRARY_ERRORS, captured_logs, first_line
from adapter_export.torch_backend.processors import LIBRARIES
from adapter_export.words import quoted

CONFIG = "tokenizer_config.json"

_LIMIT = 512
"""Maximum text length for a model that records no limit."""

_SHOWN = 3

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_TYPE_IDS, _PAIR_TOKENS = "token_type_ids", 64


class OwnProcessor:
    """A processor of transformers, from the text of its `preprocessor_config.json`; images go through Pillow.

    Raises:
        BaseModelError: transformers cannot create a processor from it.
    """

    def __init__(self, text: str, modality: FileModality) -> None:
        self.modality, self._library = modality, LIBRARIES[modality.name]
        with temporary_folder() as folder:
            (folder / PROCESSOR_FILE).write_text(text, encoding="utf-8")
            self._processor = _opened(folder, modality)

    @property
    def name(self) -> str:
        """Library, version and class, for people."""
        return f"transformers {transformers.__version__} {type(self._processor).__name__}"

    @property
    def input(self) -> str:
        """Name of the input that it makes."""
        known = self.modality.processor_inputs
        names = [name for name in self._processor.model_input_names if name in known]
        if not names:
            raise BaseModelError("makes none of the known inputs", expected=", ".join(known))
        return str(names[0])

    @property
    def sampling_rate(self) -> int | None:
        """Sampling rate in Hz; `None` if files have none."""
        return self._library.rate(self._processor)

    def __call__(self, contents: Sequence[np.ndarray], name: str) -> np.ndarray:
        """Return the input `name`, float32, with a row per image [height, width, 3] or audio [samples].

        Raises:
            BaseModelError: transformers rejects them, such as audio files of different lengths.
        """
        with captured_logs():
            try:
                rows = [self._library.run(self._processor, one, "np")[name] for one in contents]
                return np.concatenate(rows).astype(np.float32)
            except LIBRARY_ERRORS as error:
                raise BaseModelError(
                    f"the processor cannot read {self.modality.word}s", where=self.name, found=first_line(error)
                ) from error


def _opened(folder: Path, modality: FileModality) -> Any:
    def refusal(reason: str) -> BaseModelError:
        return BaseModelError("transformers cannot use the processor", found=reason)

    with captured_logs(), parsing(refusal):
        return LIBRARIES[modality.name].load(folder)


def own_media(folder: Path) -> tuple[CapturedMedia | None, tuple[str, ...]]:
    """Return the preprocessing of a folder's processor, and notes.

    `None` for a folder without a processor for images or audio. The steps follow its fields if they match transformers
    on sample media; otherwise the record has the reason why there are none.
    """
    files = [file for file in (PROCESSOR_FILE, "processor_config.json") if (folder / file).is_file()]
    if not files:
        return None, ()
    try:
        fields = read_json(folder / files[0])
        kinds = [one for one in FILE_MODALITIES.values() if isinstance(fields, dict) and one.processor_field in fields]
        if len(kinds) != 1:  # it may be for texts, for several media, or from a release that did not record it
            return None, (f"the processor is left out: `{files[0]}` does not record its modality",)
        modality = kinds[0]
        text = str(_opened(folder, modality).to_json_string())
        processor = OwnProcessor(text, modality)
        name = processor.input
    except InputError as error:
        return None, ("the processor is left out: " + error.message.rstrip("."),)
    steps: tuple[Step, ...] | None = None
    golden: GoldenMedia | None = None
    unknown: str | None = None
    try:
        every: Any = parse_json(text.encode(), PROCESSOR_FILE)  # including defaults that the file omits
        steps = modality.steps_of(every)
        samples = tuple(_samples(processor, name, steps))
    except MissingExtraError as error:
        steps, unknown = None, "could not be compared with transformers (" + error.what + ")"
    except (UnknownStepsError, InputError) as error:
        steps, unknown = None, error.message.rstrip(".") if isinstance(error, InputError) else str(error)
    digest = processor_digest(steps, processor.sampling_rate, text)
    if steps is not None:
        golden = GoldenMedia(MEDIA_VERSION, digest, processor.name, ABSOLUTE, samples)
    where = None if golden is None else GOLDEN_MEDIA_FILE
    record = MediaRecord(modality.name, name, PROCESSOR_FILE, digest, processor.sampling_rate, steps, unknown, where)
    notes = () if unknown is None else (f"clients cannot preprocess {modality.word}s: the processor " + unknown,)
    return CapturedMedia(record, text, golden), notes


def _samples(processor: OwnProcessor, name: str, steps: Sequence[Step]) -> Iterator[GoldenSample]:
    """Yield samples with the results of transformers; UnknownStepsError if the steps give different results."""
    modality, rate = processor.modality, processor.sampling_rate
    for title, file in modality.samples(rate).items():
        contents = modality.contents(file, rate, title)
        with within(title):
            expected = processor([contents], name)[0]
        found = modality.apply(contents, steps)
        if found.shape != expected.shape or not np.abs(found - expected).max() <= ABSOLUTE:
            what = f"shape {list(expected.shape)}, not {list(found.shape)}"
            if found.shape == expected.shape:
                what = f"difference {np.abs(found - expected).max():.2g}"
            raise UnknownStepsError(f"does not do what its fields describe ({title}: {what})")
        yield GoldenSample.of(title, file, expected)


def own_texts(folder: Path, max_tokens: int | None) -> tuple[GoldenTexts | None, tuple[str, ...]]:
    """Return golden texts with ids from transformers, and notes on texts for which `tokenizer.json` differs.

    `None` if the folder has no `tokenizer.json`, or no `tokenizer_config.json` with the tokenizer's class: transformers
    would guess the class, so only `tokenizer.json` defines the ids.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file() or not _names_a_class(folder / CONFIG):
        return None, ()
    try:
        text = read_text(file)
        try_tokenizer(text)
        ours = Tokenizer.from_json(text, max_tokens or _LIMIT)
    except InputError:  # callers that need it raise the error
        return None, ()
    try:
        with parsing(BaseModelError):
            library_tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, truncation_side=ours.side
            )
            texts = tuple(_texts(library_tokenizer, ours.max_tokens))
    except BaseModelError as error:
        note = "transformers cannot use the tokenizer (" + error.what + f"): ids come from `{TOKENIZER_FILE}` only"
        return None, (note,)
    made_by = f"transformers {transformers.__version__} {type(library_tokenizer).__name__}"
    golden = GoldenTexts(
        GOLDEN_TEXTS_VERSION, str(ours.digest), made_by, (GoldenTextSet(None, None, 0.0, None, texts),)
    )
    wrong = different(ours, golden)
    if not wrong:
        return golden, ()
    named = quoted(wrong[:_SHOWN]) + (" …" if len(wrong) > _SHOWN else "")
    some = f"{len(wrong)} of {number_of(len(texts), 'text')} ({named})"
    differs = f"`{TOKENIZER_FILE}` and transformers disagree on the ids of {some}"
    fix = (
        "save both again with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`, or nothing can be built"
    )
    return golden, (f"{differs}; {fix}",)


def _names_a_class(config: Path) -> bool:
    if not config.is_file():
        return False
    try:
        document = read_json(config)
    except InputError:
        return False
    return isinstance(document, dict) and isinstance(document.get("tokenizer_class"), str)


def _texts(tokenizer: Any, limit: int) -> Sequence[GoldenText]:
    texts = []
    for name, text in sample_texts(limit):
        first, second = text if isinstance(text, Pair) else (text, None)
        parts = (first,) if second is None else (first, second)
        made = tokenizer(*parts, truncation=True, max_length=limit, return_token_type_ids=True)
        ids, types = made["input_ids"], made["token_type_ids"]
        if ids:
            texts.append(GoldenText(name, first, second, tuple(ids), tuple(types)))
    return texts


def prepared_by(folder: Path) -> Prepared:
    """Return the inputs that its tokenizer and its processor make; empty for a folder without them."""
    values: dict[str, tuple[Tensor, Mapping[int, str]]] = {}
    if any((folder / name).is_file() for name in _PROCESSOR_FILES):
        values = next((found for one in FILE_MODALITIES.values() if (found := _made(folder, one))), {})
    return Prepared(_typed(folder), values)


def _typed(folder: Path) -> bool | None:
    """Return whether its tokenizer marks the texts of a pair, from its settings, its class, or its output."""
    with suppress(InputError):
        config = read_json(folder / CONFIG)
        config = config if isinstance(config, dict) else {}
        names = config.get("model_input_names")
        kind = getattr(transformers, str(config.get("tokenizer_class")), None)
        if not isinstance(names, list) and str(getattr(kind, "__module__", "")).startswith("transformers.models."):
            names = kind.model_input_names  # type: ignore[union-attr]
        if isinstance(names, list):
            return _TYPE_IDS in names
    with suppress(InputError):
        made = Tokenizer.from_folder(folder, _PAIR_TOKENS).batch([Pair("a", "b")], [_TYPE_IDS])
        return bool(made[_TYPE_IDS].any())
    return None


def _made(folder: Path, modality: FileModality) -> dict[str, tuple[Tensor, Mapping[int, str]]]:
    """Return the tensors that a processor makes of the first of two files; axes that differ in the second are dynamic.

    Empty if transformers has no such processor for the folder, or it needs other inputs.
    """
    library = LIBRARIES[modality.name]
    try:
        with parsing(partial(BaseModelError, where=folder)):
            own = library.load(folder)
            rate = library.rate(own)
            first, second = (library.run(own, modality.noise(number, rate), "pt") for number in range(2))
    except BaseModelError:
        return {}
    names: dict[tuple[int, int], str] = {}
    made_inputs: dict[str, tuple[Tensor, Mapping[int, str]]] = {}
    for name, tensor in first.items():
        other = second.get(name)
        if not isinstance(tensor, Tensor) or not isinstance(other, Tensor) or tensor.dim() != other.dim():
            continue
        axes = {0: "batch"}
        for place in range(1, tensor.dim()):
            lengths = tensor.shape[place], other.shape[place]
            if lengths[0] != lengths[1]:
                axes[place] = names.setdefault(lengths, _axis(tensor, place))
        made_inputs[name] = tensor, axes
    return made_inputs


def _axis(tensor: Tensor, place: int) -> str:
    if tensor.dim() > 3:
        return {1: "width", 2: "height"}.get(tensor.dim() - place, f"axis_{place}")
    return SAMPLES if tensor.dim() == 2 else "frames"
