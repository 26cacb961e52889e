"""`POST /v1/audio/transcriptions`: the client of OpenAI gets the texts that `Bundle.transcriber` writes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from served import made_app
from starlette.testclient import TestClient
from tiers import extended
from tiny_whisper import sound, tiny_whisper, wav

from adapter_export.plugins.serve.server_settings import Limits
from adapter_export.runtime import Bundle
from adapter_export.runtime.generation.transcriber import Transcriber

PATH = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
@extended
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory)


@pytest.fixture(scope="module")
def transcriber(places: Path) -> Transcriber:
    return Bundle.open(places / "bundle").transcriber()


@pytest.fixture(scope="module")
def service(places: Path) -> Iterator[TestClient]:
    with made_app(f"whisper={places / 'bundle'}", quiet=True) as client:
        yield client


@pytest.fixture
def client(service: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=service)


@pytest.mark.parametrize("model", ["whisper", "few", "all"])
def test_the_client_of_openai_gets_the_text_of_its_adapter(
    client: openai.OpenAI, transcriber: Transcriber, model: str
) -> None:
    file, name = wav(sound(2)), "base" if model == "whisper" else model
    (expected,) = transcriber.write([file], name, language="fr")
    made = client.audio.transcriptions.create(model=model, file=("a.wav", file), language="fr", temperature=0)
    assert made.text == expected.text
    assert client.audio.transcriptions.create(
        model=model, file=("a.wav", file), language="fr", response_format="text"
    ).strip() == expected.text  # fmt: skip
    full = client.audio.transcriptions.create(model=model, file=("a.wav", file), response_format="verbose_json")
    (detected,) = transcriber.write([file], name)
    assert (full.text, full.language, full.duration) == (detected.text, detected.language, 0.6)


def test_segments_of_a_long_file_have_times(client: openai.OpenAI, transcriber: Transcriber) -> None:
    file = wav(sound(3, 2.5))
    (expected,) = transcriber.write([file], "few", timestamps=True)
    made = client.audio.transcriptions.create(
        model="few",
        file=("a.wav", file),
        response_format="verbose_json",
        timestamp_granularities=["segment"],
    )
    assert expected.segments is not None
    assert made.segments is not None
    assert [(one.start, one.end, one.text) for one in made.segments] == [
        (one.start, one.end, one.text) for one in expected.segments
    ]
    short = client.audio.transcriptions.create(model="few", file=("a.wav", file))
    assert (made.text, short.text) == (expected.text, expected.text)


def test_a_text_beyond_the_limit_of_the_server_is_refused(places: Path) -> None:
    """Its end would be missing."""
    with made_app(f"whisper={places / 'bundle'}", quiet=True, limits=Limits(max_new_tokens=3)) as limited:
        answer = limited.post(PATH, data={"model": "few"}, files={"file": ("a.wav", wav(sound(1)))})
    assert answer.status_code == 400
    assert "the text exceeds the limit of this server" in answer.json()["error"]["message"]


def test_a_translation_has_its_own_task(service: TestClient, transcriber: Transcriber) -> None:
    files = [wav(sound(at)) for at in range(6)]
    expected, others = (transcriber.write(files, "all", task=task) for task in ("translate", None))
    at = next(at for at, (one, other) in enumerate(zip(expected, others, strict=True)) if one.text != other.text)
    made = service.post("/v1/audio/translations", data={"model": "all"}, files={"file": ("a.wav", files[at])})
    assert made.json()["text"] == expected[at].text


def test_files_of_several_adapters_share_the_engine(client: openai.OpenAI, transcriber: Transcriber) -> None:
    calls = [(name, wav(sound(at))) for at, name in enumerate(["few", "all", "few", "all"])]
    expected = transcriber.write([file for _, file in calls], adapters=[name for name, _ in calls])
    with ThreadPoolExecutor(4) as pool:
        texts = pool.map(
            lambda call: client.audio.transcriptions.create(model=call[0], file=("a.wav", call[1])).text, calls
        )
        assert list(texts) == [one.text for one in expected]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no file": ({"file": None}, "the form has no file"),
    "no WAV": ({"file": b"RIFF"}, "is not a readable WAV file"),
    "language": ({"language": "it"}, "no token for this language; found `it`"),
    "temperature": ({"temperature": "0.5"}, "unsupported value; found '0.5'"),
    "prompt": ({"prompt": "names"}, "unsupported value"),
    "format": ({"response_format": "srt"}, "response_format"),
    "words": ({"timestamp_granularities[]": "word"}, "unsupported value; found 'word'"),
    "segments": ({"timestamp_granularities[]": "segment"}, "segments need another format"),
    "model": ({"model": "unknown"}, "there is no model `unknown`"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_calls_that_would_get_another_text_are_refused(service: TestClient, fault: str) -> None:
    changed, message = REFUSED[fault]
    fields: dict[str, Any] = {"model": "few", "file": wav(sound(1)), **changed}
    file = fields.pop("file")
    files = {"file": ("a.wav", file)} if file is not None else {"other": ("", "")}
    response = service.post(PATH, data=fields, files=files)
    assert response.status_code in (400, 404)
    assert message in response.json()["error"]["message"] or fault == "no file"


def test_a_prompt_is_refused_at_other_routes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the bundle writes the texts of files"):
        client.completions.create(model="few", prompt="w5")
