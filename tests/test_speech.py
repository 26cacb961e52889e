"""Encoders of sound that generate: a bundle writes what transformers and PEFT write of Whisper, token by token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from click.testing import CliRunner
from tiers import extended
from tiny_whisper import (
    ADAPTERS,
    BOTTLENECK,
    END,
    LANGUAGES,
    NO_TIMESTAMPS,
    RATE,
    SECONDS,
    START,
    TASKS,
    save_whisper,
    sound,
    tiny_whisper,
    wav,
    whisper_model,
)

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.errors import BaseModelError, RequestError
from adapter_export.format.axes import length
from adapter_export.format.manifest_json import write_manifest
from adapter_export.format.sketch import filled
from adapter_export.runtime import Bundle, Decoding, Session
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.transcriber import Transcriber, transcriber_of

TIMES = NO_TIMESTAMPS + 1
CHOICES = (None, *ADAPTERS, BOTTLENECK)
SOUNDS = [sound(at) for at in range(3)]
OPTIONS: Sequence[dict[str, str]] = (
    {},
    {"language": "fr"},
    {"task": "translate"},
    {"language": "en", "task": "translate"},
)


@pytest.fixture(scope="session")
@extended
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory)


@pytest.fixture(scope="session")
def session(folder: Path) -> Session:
    return Bundle.open(folder / "bundle").session()


@pytest.fixture(scope="session")
def transcriber(folder: Path, session: Session) -> Transcriber:
    return Bundle.open(folder / "bundle").transcriber(session)


@cache
def _model(folder: Path, name: str | None) -> torch.nn.Module:
    return whisper_model(folder, name)


def written_in_transformers(folder: Path, name: str | None, samples: np.ndarray, **options: str) -> list[int]:
    """The tokens that `generate` of transformers or PEFT writes of a sound, without those that it forces."""
    extractor = hf.WhisperFeatureExtractor.from_pretrained(folder / "hf")
    features = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt").input_features
    tokens: list[int] = _model(folder, name).generate(input_features=features, **options)[0].tolist()
    return tokens


def test_the_texts_tell_adapters_and_sounds_apart(folder: Path) -> None:
    texts = {
        tuple(written_in_transformers(folder, name, samples, **options))
        for name in CHOICES
        for samples in SOUNDS
        for options in OPTIONS[::3]
    }
    assert len(texts) > 2 * len(CHOICES)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_session_writes_what_transformers_and_peft_write(
    folder: Path, session: Session, name: str | None, options: dict[str, str]
) -> None:
    """Languages are detected, and tokens forced and suppressed, according to the configuration."""
    expected = [written_in_transformers(folder, name, samples, **options) for samples in SOUNDS]
    assert session.transcribe(SOUNDS, name, **options) == expected


def test_rows_of_one_batch_have_adapters_of_their_own(folder: Path, session: Session) -> None:
    names = ["all", None, "few", BOTTLENECK, "all", "few"]
    sounds = [sound(at) for at in range(len(names))]
    expected = [written_in_transformers(folder, name, samples) for name, samples in zip(names, sounds, strict=True)]
    assert session.transcribe(sounds, adapters=names) == expected


def test_a_transcriber_writes_texts_of_files(transcriber: Transcriber, session: Session, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(SOUNDS[0]))
    (found,) = transcriber.write([path], "few", language="de", decoding=Decoding(5))
    (tokens,) = session.transcribe([path.read_bytes()], "few", language="de", decoding=Decoding(5))
    assert found.tokens == tuple(tokens)
    assert found.text == " ".join(f"w{token}" for token in tokens)
    assert (found.adapter, found.language, found.seconds, found.finish) == ("few", "de", 0.6, "length")


def test_the_command_writes_texts(folder: Path, transcriber: Transcriber, tmp_path: Path) -> None:
    paths = [tmp_path / f"{at}.wav" for at in range(2)]
    for path, samples in zip(paths, SOUNDS, strict=False):
        path.write_bytes(wav(samples))
    arguments = ["run", str(folder / "bundle"), "--adapters", "few,-", "--translate"]
    arguments += [word for path in paths for word in ("--audio", str(path))]
    expected = transcriber.write(paths, adapters=["few", None], task="translate")
    found = CliRunner().invoke(main, [*arguments, "--json"])
    assert json.loads(found.stdout)["rows"] == [one.document() for one in expected]
    timed = CliRunner().invoke(main, [*arguments, "--timestamps"]).stdout
    assert "0.00 – " in timed
    shown = CliRunner().invoke(main, arguments).stdout
    assert all(one.text in shown for one in expected)


LENGTHS = (0.6, 2.5)
"""Seconds of a sound within a window, and of one that takes several."""


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("seconds", LENGTHS)
def test_segments_of_long_sounds_are_those_of_transformers_and_peft(
    folder: Path, transcriber: Transcriber, name: str | None, seconds: float
) -> None:
    """Each window begins at the last time of the one before it; the spectrum is that of the whole sound."""
    samples, extractor = sound(3, seconds), hf.WhisperFeatureExtractor.from_pretrained(folder / "hf")
    whole = {"truncation": False, "padding": "longest"} if seconds > SECONDS else {}
    features = extractor(samples, sampling_rate=RATE, return_tensors="pt", **whole).input_features
    found = _model(folder, name).generate(
        input_features=features, return_timestamps=True, return_segments=True, language="de"
    )
    (text,) = transcriber.write([samples], name or "base", language="de", timestamps=True)
    assert text.tokens == tuple(found["sequences"][0].tolist())
    times = [(float(segment["start"]), float(segment["end"])) for segment in found["segments"][0]]
    assert text.segments is not None
    assert [(segment.start, segment.end) for segment in text.segments] == times
    assert len(times) > (seconds > SECONDS)
    words = [" ".join(f"w{token}" for token in one["tokens"].tolist() if token < TIMES) for one in found["segments"][0]]
    assert [segment.text for segment in text.segments] == words


def test_a_long_sound_has_times_as_in_transformers(transcriber: Transcriber) -> None:
    """They are asked for or not; and files of several lengths share calls."""
    sounds = [sound(3, 2.5), sound(1), sound(2, 1.7)]
    (first, second, third) = transcriber.write(sounds, adapters=["few", "all", None])
    assert first == replace(transcriber.write([sounds[0]], "few", timestamps=True)[0], file=first.file)
    assert third == replace(transcriber.write([sounds[2]], "base", timestamps=True)[0], file=third.file)
    assert second == replace(transcriber.write([sounds[1]], "all")[0], file=second.file)
    assert second.segments is None


def test_golden_texts_are_those_of_transformers_and_peft(folder: Path) -> None:
    """Each is cut only where the two largest logits are so near that rounding decides, which is rare."""
    manifest = Bundle.open(folder / "bundle").manifest
    records = {None: manifest.golden} | {one.name: one.golden for one in manifest.adapters}
    assert sum(len(text.tokens) for one in records.values() for text in one.written) > 60
    shape = [int(size) for size in manifest.inputs[0].axes[2:]]
    codes = {token: name[2:-2] for name, token in LANGUAGES.items()}
    tasks = {token: task for task, token in TASKS.items()}
    for name, golden in records.items():
        for text in golden.written:
            start, language, task, closing = text.prompt
            assert (start, closing) == (START, NO_TIMESTAMPS)
            assert text.fill is not None
            features = torch.from_numpy(filled(text.fill, [1, *shape]))
            found = _model(folder, name).generate(
                input_features=features,
                language=codes[language],
                task=tasks[task],
                max_new_tokens=len(text.tokens),
                force_unique_generate_call=True,
                return_dict_in_generate=True,
            )
            assert found.sequences[0].tolist() == [*text.prompt, *text.tokens]


def test_a_check_finds_a_golden_text_that_another_program_wrote(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "bundle", tmp_path / "bundle")
    manifest = Bundle.open(copy).manifest
    first, *others = manifest.adapters
    texts = [replace(one, tokens=(*one.tokens[:-1], (one.tokens[-1] + 1) % END)) for one in first.golden.written]
    wrong = replace(first, golden=replace(first.golden, written=(texts[0], *first.golden.written[1:])))
    write_manifest(replace(manifest, adapters=(wrong, *others)), copy)
    report = ae.check(copy, quick=True)
    assert [(found.check, found.subject) for found in report.findings if found.status == "failed"] == [
        ("golden generation", first.name),
        ("golden schedule", first.name),
    ]


def test_adding_an_adapter_adds_its_golden_texts(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "bundle", tmp_path / "bundle")
    before = Bundle.open(copy).manifest.adapters
    ae.remove(copy, ["few"])
    adapter = ae.import_peft(folder / "few", folder / "base.pt", name="few")
    after = ae.add(copy, [adapter], against=folder / "base.pt").manifest.adapters
    assert {one.name: one.golden.written for one in after} == {one.name: one.golden.written for one in before}


def test_the_whole_bundle_passes_a_check_against_its_base(folder: Path) -> None:
    report = ae.check(folder / "bundle", against=folder / "base.pt", quick=True)
    assert report.passed
    halves = {slot.site.partition(".")[0] for slot in Bundle.open(folder / "bundle").manifest.slots}
    assert halves == {"encoder", "decoder"}


class TestRefused:
    """Calls that would give a text of something else, or of a part."""

    def test_a_file_that_needs_times_of_a_model_without_any_is_refused(self, session: Session, folder: Path) -> None:
        """Its text would lack a part."""
        manifest = Bundle.open(folder / "bundle").manifest
        assert manifest.generation is not None
        assert manifest.generation.speech is not None
        without = replace(manifest.generation, speech=replace(manifest.generation.speech, timestamps=None))
        transcriber = transcriber_of(
            Decoder(session, replace(manifest, generation=without)), manifest.media, None, None
        )
        with pytest.raises(RequestError, match=r"longer than the window of .*; found 1.2 s; expected at most 1 s"):
            transcriber.write([sound(0, 1.2)], "few")
        with pytest.raises(RequestError, match="the model writes no timestamps"):
            transcriber.write(SOUNDS, "few", timestamps=True)

    def test_times_that_nobody_asked_for_are_refused(self, session: Session, folder: Path) -> None:
        """Transformers reads the sound again from there, which would be another text."""
        manifest = Bundle.open(folder / "bundle").manifest
        assert manifest.generation is not None
        settings = replace(manifest.generation, suppressed=tuple(range(NO_TIMESTAMPS + 1)))
        transcriber = transcriber_of(
            Decoder(session, replace(manifest, generation=settings)), manifest.media, None, None
        )
        with pytest.raises(RequestError, match="the model wrote timestamps in a text without timestamps"):
            transcriber.write(SOUNDS, "few")

    def test_a_file_of_too_many_windows_is_refused(self, transcriber: Transcriber) -> None:
        with pytest.raises(RequestError, match="is too long; found 241 s; expected at most 240 s"):
            transcriber.write([np.zeros(241 * RATE, np.float32)], "few")

    def test_unknown_languages_and_tasks_are_refused(self, transcriber: Transcriber) -> None:
        with pytest.raises(RequestError, match="no token for this language; found `it`; expected `de`, `en`, `fr`"):
            transcriber.write(SOUNDS, "few", language="it")
        with pytest.raises(RequestError, match="no token for this task; found `sing`"):
            transcriber.write(SOUNDS, "few", task="sing")

    def test_prompts_are_refused(self, session: Session) -> None:
        with pytest.raises(RequestError, match="the bundle writes the texts of files; found prompts"):
            session.generate([[5]])

    def test_a_second_window_is_refused(self, session: Session, folder: Path) -> None:
        """Positions would begin again, and the model has never read two windows."""
        manifest = Bundle.open(folder / "bundle").manifest
        for new, past in ((2, 0), (1, 1), (0, 0)):
            shapes = {"batch": 1, "windows": new, "past_windows": past, "decoder_sequence": 1}
            shape = {**shapes, "past_decoder_sequence": 0}
            arrays = {
                record.name: np.zeros([length(axis, shape) for axis in record.axes], record.dtype)
                for record in manifest.inputs
            }
            with pytest.raises(RequestError, match="windows`"):
                session.run(arrays)


SETTINGS = {
    "timestamps": ({"return_timestamps": True}, "settings that are not supported for files; found `return_timestamps`"),
    "beams": ({"num_beams": 3}, "not supported for files; found `num_beams`"),
    "speech": ({"no_speech_threshold": 0.6}, "found `no_speech_threshold`"),
}


@pytest.mark.parametrize("fault", SETTINGS)
def test_settings_without_a_counterpart_are_refused(tmp_path: Path, fault: str) -> None:
    settings, message = SETTINGS[fault]
    save_whisper(tmp_path / "hf", **settings)
    with pytest.raises(BaseModelError, match=message):
        ae.capture(tmp_path / "hf", tmp_path / "base.pt")


def test_a_model_without_its_processor_is_refused(tmp_path: Path) -> None:
    save_whisper(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").unlink()
    with pytest.raises(BaseModelError, match=r"has no processor whose steps are known.*`bare=True`"):
        ae.capture(tmp_path / "hf", tmp_path / "base.pt")


def test_an_encoder_of_sound_of_any_length_is_refused(tmp_path: Path) -> None:
    """It has no window, so that its rows would not be those of the batch times the windows."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 50, "pad_token_id": 0}
    halves = {
        f"{half}_num_{name}": 1 for half in ("encoder", "decoder") for name in ("hidden_layers", "attention_heads")
    }
    config = hf.MoonshineConfig(**sizes, **halves)
    hf.MoonshineForConditionalGeneration(config).save_pretrained(tmp_path / "hf")
    hf.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "hf")
    with pytest.raises(BaseModelError, match=r"encoder whose input has several lengths.*`bare=True`"):
        ae.capture(tmp_path / "hf", tmp_path / "base.pt")
