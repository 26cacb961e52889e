"""Images and audio over HTTP: the answers of the runtime, and refusals."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bodies import checked
from served import made_app
from small_media import noise, png
from starlette.testclient import TestClient

from adapter_export.plugins.serve.server_settings import Limits
from adapter_export.runtime import Bundle

IMAGES = [png(noise(20, 30, 3, seed=number)) for number in range(3)]


@pytest.fixture(scope="module")
def service(vit_folder: Path, film: Path) -> Iterator[TestClient]:
    with made_app(f"vit={vit_folder / 'bundle'}", f"film={film}", quiet=True) as client:
        yield client


def _sent(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _refused(service: TestClient, **call: Any) -> str:
    answer = service.post("/answer", json=call)
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"])


def test_files_have_the_answers_of_the_runtime(service: TestClient, vit_folder: Path) -> None:
    expected = [one.document() for one in Bundle.open(vit_folder / "bundle").files("image").answer(IMAGES)]
    calls: list[dict[str, Any]] = [{"files": [*map(_sent, IMAGES)]}, *({"file": _sent(one)} for one in IMAGES)]
    found = []
    for call in calls:
        answer = service.post("/answer", json=checked({"model": "vit", **call}, "call"))
        assert answer.status_code == 200, answer.text
        found += checked(answer.json(), "rows")["rows"]
    for one, right in zip(found, [*expected, *expected], strict=True):
        assert one["label"] == right["label"]
        assert one["probabilities"] == pytest.approx(right["probabilities"], abs=1e-6)


def test_a_path_on_the_server_is_never_read(service: TestClient, tmp_path: Path) -> None:
    there = tmp_path / "there.png"
    there.write_bytes(IMAGES[0])
    assert "bundle `vit` reads images; found a text" in _refused(service, model="vit", text=str(there))
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [str(there)]}
    answer = service.post("/v2/models/vit/infer", json={"inputs": [tensor]})
    assert (answer.status_code, "reads images" in answer.text) == (400, True)
    assert "text" not in {one["name"] for one in service.get("/v2/models/vit").json()["inputs"]}


def test_invalid_files_are_refused(service: TestClient) -> None:
    assert "bundle `film` reads texts; found a file" in _refused(service, model="topic", file=_sent(IMAGES[0]))
    assert "image 0: is not a readable image" in _refused(service, model="vit", file=_sent(IMAGES[0][:100]))
    assert "not valid base64" in _refused(service, model="vit", file="no base64!")
    assert "more than one kind of rows" in _refused(service, model="vit", file=_sent(IMAGES[0]), text="a")
    assert "there is no file" in _refused(service, model="vit", files=[])


def test_oversized_images_are_refused_before_decoding(vit_folder: Path) -> None:
    bomb = png(np.zeros((5800, 5800, 3), np.uint8))  # 100 kB, and 33,640,000 pixels
    with made_app(f"vit={vit_folder / 'bundle'}", quiet=True) as client:
        answer = client.post("/answer", json={"model": "vit", "files": [_sent(IMAGES[0]), _sent(bomb)]})
        assert answer.status_code == 413
        assert "image 1 has 33,640,000 pixels or samples; expected at most 33,554,432 (`max_file`" in answer.text
    for most, status in ((600, 200), (599, 413)):
        with made_app(f"vit={vit_folder / 'bundle'}", quiet=True, limits=Limits(max_file=most)) as client:
            answer = client.post("/answer", json={"model": "vit", "file": _sent(IMAGES[0])})
            assert answer.status_code == status, answer.text
