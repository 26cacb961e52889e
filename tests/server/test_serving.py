"""Routes, adapters loaded by name, limits and admission, on a server in its own process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest
from chromium import QUIET
from clients import tool
from oci_registry import OciRegistry
from served import made_app, served
from traffic import Traffic, two_versions

import adapter_export as ae
from adapter_export.errors import UsageError
from adapter_export.plugins.serve.limits import RefusedError
from adapter_export.plugins.serve.models import LoadedAdapter, Models, named_bundles
from adapter_export.plugins.serve.process import listen
from adapter_export.plugins.serve.server_settings import Limits, ServerSettings, SessionSettings
from adapter_export.plugins.serve.service import same_answers
from adapter_export.plugins.serve.telemetry import Metrics, Tracer
from adapter_export.runtime import Bundle

TEXT = "a good film , and the book was not dull ."


def _answer(server: httpx2.Client, model: str, text: str = TEXT, **call: object) -> dict:
    answer = server.post("/answer", json={"model": model, "text": text, **call})
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()["rows"]
    return dict(row)


def _alike(found: dict, expected: dict) -> None:
    assert found["label"] == expected["label"]
    assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_adapters_are_addressed_as_models(server: httpx2.Client, film: Path) -> None:
    expected = Bundle.open(film).texts().answer([TEXT], "tone")[0].document()
    for name in ("tone", "film/tone"):
        found = _answer(server, name)
        _alike(found, expected)
        assert (found["adapter"], found["task"]) == ("tone", "single_label")
    for path in ("/docs", "/openapi.json", "/v2/models"):
        assert (server.get(path).status_code, path in server.get(path).json()["error"]) == (404, True)
    unknown = server.post("/answer", json={"model": "nobody", "text": TEXT})
    assert unknown.status_code == 404
    assert "no model `nobody`; expected one of `film`, `topic`" in unknown.json()["error"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"model": "tone", "text": TEXT, "texts": [TEXT]}, "more than one kind of rows"),
        ({"model": "tone"}, "the call has no rows"),
        ({"model": "tone", "adapter": "tone", "text": TEXT}, "more than one of `model`"),
        ({"model": "tone", "pair": TEXT}, "the call has no rows"),
        ({"model": "tone", "texts": [TEXT], "pair": TEXT}, "need a `text`"),
        ({"model": "tone", "text": TEXT, "choices": [TEXT]}, "of another kind"),
        (
            {"model": "tone", "text": TEXT, "strenght": 0.5},
            "strenght: the request is not of the expected form; found an unknown field; expected `",
        ),
        ({"model": "tone", "text": TEXT, "strength": True}, "found true; expected a number or a list"),
        (
            {"model": "tone", "text": TEXT, "strength": "0.5"},
            "strength: the request is not of the expected form; found the ",
        ),
        (
            {"model": "tone", "texts": [TEXT, 5]},
            "texts.1: the request is not of the expected form; found 5; expected a ",
        ),
        (
            {"model": "tone", "texts": [{"text": TEXT}]},
            "found an object; expected a string or an object with `side` or an ",
        ),
        ({"model": "tone", "text": TEXT, "side": "left"}, "found the string `left`; expected `query` or `document`"),
        ({"model": "tone", "text": TEXT, "id": "x" * 201}, "expected at most 200 characters"),
        ({"model": "tone", "text": TEXT, "strength": 1001}, "is no strength"),
        ({"model": "tone", "texts": [TEXT, TEXT], "strength": [1]}, "one for each row"),
    ],
)
def test_invalid_calls_are_refused(server: httpx2.Client, call: dict, words: str) -> None:
    answer = server.post("/answer", json=call)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_strength_scales_adapters_per_row(server: httpx2.Client, film: Path) -> None:
    reader = Bundle.open(film).texts()
    each = {strength: reader.answer([TEXT], "topic", strength=strength)[0].document() for strength in (1.0, 0.5, -2.0)}
    _alike(_answer(server, "topic", strength=0.5), each[0.5])
    call = {"adapter": "topic", "texts": [TEXT] * 3, "strength": list(each)}
    for found, expected in zip(server.post("/answer", json=call).json()["rows"], each.values(), strict=True):
        _alike(found, expected)
    assert len({one["probability"] for one in each.values()}) == 3
    rows = {"input_ids": [[2, 5, 3]] * 2, "attention_mask": [[1, 1, 1]] * 2}
    call = {"adapters": ["tone", None], "inputs": rows, "strength": [0.5, 0.5]}
    half, base = (np.array(one["outputs"]["hidden"]) for one in server.post("/run", json=call).json()["rows"])
    arrays = {name: np.array(values[:1]) for name, values in rows.items()}
    np.testing.assert_allclose(half, reader.session.run(arrays, "tone", strength=0.5)["hidden"][0], atol=1e-5)
    np.testing.assert_allclose(base, reader.session.run(arrays)["hidden"][0], atol=1e-5)


def test_aliases_and_shares_can_be_rolled_back(server: httpx2.Client) -> None:
    assert server.put("/admin/routes/best", json={"alias": "tone"}).status_code == 200
    assert _answer(server, "best")["adapter"] == "tone"
    server.put("/admin/routes/best", json={"shares": {"tone": 0.5, "mood": 0.5}})
    found = Counter(_answer(server, "best", id=str(number))["adapter"] for number in range(40))
    assert min(found["tone"], found["mood"]) > 8
    assert len({_answer(server, "best", id="7")["adapter"] for _ in range(5)}) == 1
    bad = server.put("/admin/routes/best", json={"shares": {"tone": 1.5}})
    assert (bad.status_code, "share" in bad.json()["error"]) == (400, True)
    assert server.put("/admin/routes/best", json={"alias": "nobody"}).status_code == 400
    assert server.delete("/adapters/tone").status_code == 409
    assert server.post("/admin/rollback").json()["best"]["shares"] == {"tone": 1.0}
    assert _answer(server, "best")["adapter"] == "tone"
    assert server.delete("/admin/routes/best").json() == {}
    assert server.delete("/admin/routes/best").status_code == 404
    assert server.post("/answer", json={"model": "best", "text": TEXT}).status_code == 404


def test_a_shadow_is_only_compared(server: httpx2.Client) -> None:
    server.put("/admin/routes/seen", json={"alias": "tone", "shadow": "mood"})
    server.put("/admin/routes/twin", json={"alias": "tone", "shadow": "tone"})
    for name in ("seen", "twin", "twin"):
        assert _answer(server, name)["adapter"] == "tone"
    wanted = [
        'shadow_rows_total{outcome="different",route="seen"} 1.0',
        'shadow_rows_total{outcome="same",route="twin"} 2.0',
    ]
    ends = time.monotonic() + 10
    while not all(line in server.get("/metrics").text for line in wanted):
        assert time.monotonic() < ends, server.get("/metrics").text
        time.sleep(0.02)
    for name in ("seen", "twin"):
        server.delete(f"/admin/routes/{name}")


def test_adapters_are_found_by_name(server: httpx2.Client, film: Path, tenants: Path) -> None:
    """A file with its task, and an adapter folder, whose file equals that in the bundle."""
    found, tone = _answer(server, "visitor"), _answer(server, "tone")
    assert list(found["probabilities"]) == ["cold", "warm"]
    np.testing.assert_allclose(list(found["probabilities"].values()), list(tone["probabilities"].values()), atol=1e-5)
    digest = hashlib.sha256((film / "adapters" / "mood.onnx_adapter").read_bytes()).hexdigest()
    _alike(_answer(server, f"guest@sha256:{digest}"), _answer(server, "mood"))
    wrong = server.post("/answer", json={"model": f"guest@sha256:{'0' * 64}", "text": TEXT})
    assert (wrong.status_code, "digest" in wrong.json()["error"]) == (404, True)
    for name in ("../film", "%2e%2e", "no-one", "visitor/x"):
        assert server.post("/answer", json={"model": name, "text": TEXT}).status_code == 404
    assert server.post("/v2/repository/models/visitor/unload").status_code == 200
    assert "visitor" not in server.get("/adapters").json()
    assert server.post("/v2/repository/models/visitor/load").json()["bundle"] == "film"
    assert server.post("/v2/repository/models/nobody/load").status_code == 404
    for name in ("visitor", "guest"):
        server.delete(f"/adapters/{name}")


def test_metrics_count_requests_without_unknown_names(server: httpx2.Client) -> None:
    def value(name: str) -> float:
        line = next((one for one in server.get("/metrics").text.splitlines() if one.startswith(name)), "0")
        return float(line.split()[-1])

    names = ['requests_total{model="topic",status="200"}', 'rows_total{bundle="film"}']
    before = [value(f"adapter_export_{name}") for name in names]
    server.post("/answer", json={"model": "topic", "texts": [TEXT, "moon"]})
    server.post("/answer", json={"model": "x" * 50, "text": TEXT})
    after = [value(f"adapter_export_{name}") for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 2]
    text = server.get("/metrics").text
    assert "xxxxx" not in text
    for name in ("request_seconds_bucket", "call_rows_count", "waiting_rows", "resident_adapters", "adapter_loads"):
        assert f"adapter_export_{name}" in text


def test_the_page_escapes_names(server: httpx2.Client) -> None:
    answer = server.get("/")
    script = answer.text.partition("<script>")[2].partition("</script>")[0]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|https?:", script)
    policy = answer.headers["content-security-policy"]
    assert "script-src 'sha256-" in policy
    assert "default-src 'none'" in policy


def test_page_escapes_html_in_a_browser(server: httpx2.Client, film: Path, tmp_path: Path) -> None:
    """The page answers the text of its link, and shows HTML in a label as text."""
    label = "<img src=x onerror=\"document.title='open'\">"
    data = (film / "adapters" / "tone.onnx_adapter").read_bytes()
    server.put("/adapters/evil", content=data, params={"labels": f"{label},{label}2"}).raise_for_status()
    page = f"{server.base_url}?model=evil&text=moon"
    words = [tool("chromium", "chromium"), *QUIET, f"--user-data-dir={tmp_path}", "--virtual-time-budget=6000"]
    done = subprocess.run([*words, "--dump-dom", page], capture_output=True, text=True, timeout=120, check=False)
    server.delete("/adapters/evil").raise_for_status()
    assert "<title>adapter-export serve</title>" in done.stdout
    assert "<img" not in done.stdout.partition("<script>")[0]
    assert re.search(r"<strong>&lt;img src=x onerror=.*&gt;2?</strong>", done.stdout), done.stdout
    assert "4 models, ready" in done.stdout or "5 models, ready" in done.stdout


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://elsewhere.example"},
        {"x-forwarded-for": "8.8.8.8"},
        {"host": "elsewhere.example"},
        {"host": "["},
    ],
    ids=["a page of others", "behind a proxy", "another name", "no name"],
)
def test_unauthorized_clients_change_nothing(server: httpx2.Client, headers: dict[str, str]) -> None:
    for method, path in (
        ("PUT", "/admin/routes/x"),
        ("POST", "/admin/rollback"),
        ("PUT", "/adapters/x"),
        ("DELETE", "/adapters/tone"),
        ("POST", "/v2/repository/models/film/load"),
        ("POST", "/v2/repository/models/tone/unload"),
    ):
        assert server.request(method, path, headers=headers, json={"alias": "tone"}).status_code == 403, path
    assert "tone" in server.get("/adapters").json()


def test_a_token_admits_remote_clients(film: Path) -> None:
    with made_app(film, token="secret", quiet=True) as client:
        far = {"x-forwarded-for": "8.8.8.8"}
        assert client.post("/admin/rollback").status_code == 401
        assert client.post("/admin/rollback", headers={"authorization": "Bearer other"}).status_code == 401
        given = {"authorization": "Bearer secret", **far}
        assert client.put("/admin/routes/x", headers=given, json={"alias": "tone"}).status_code == 200


def test_duplicate_names_are_refused(film: Path) -> None:
    with pytest.raises(UsageError, match=r"two models have the same name; found `topic` in `film` and in `other`"):
        made_app(film, f"other={film}")
    with made_app(film, f"other={film}", qualify=True) as client:
        assert _answer(client, "other/tone")["adapter"] == "tone"
        assert client.post("/answer", json={"model": "tone", "text": TEXT}).status_code == 404
        assert "several bundles" in client.post("/answer", json={"texts": [TEXT]}).json()["error"]
        both = client.post("/answer", json={"adapters": ["film/tone", "other/mood"], "texts": [TEXT, TEXT]}).json()
        assert [one["adapter"] for one in both["rows"]] == ["tone", "mood"]
    with pytest.raises(UsageError, match=r"a bundle and an adapter have the same name; found `tone`"):
        made_app(f"tone={film}")
    with pytest.raises(UsageError, match="two bundles have the same name"):
        named_bundles([str(film), f"film={film}"])


def test_shadow_answers_are_compared_within_tolerance() -> None:
    token = {"tokens": [{"token": "a", "label": "x", "probability": 0.9}]}
    assert same_answers(
        {"adapter": "a", "label": "x", "probability": 0.9}, {"adapter": "b", "label": "x", "probability": 0.7}
    )
    assert same_answers(token, {"tokens": [{"token": "a", "label": "x", "probability": 0.6}]})
    assert not same_answers(token, {"tokens": [{"token": "a", "label": "y", "probability": 0.9}]})
    assert not same_answers({"numbers": [1.0, 2.0]}, {"numbers": [1.0, 2.1]})
    assert same_answers({"vector": [1.0, 2.0]}, {"vector": [1.0, 2.0001]})
    assert not same_answers({"vector": [1.0]}, {"label": "x"})


def test_an_adapter_is_unloaded_after_its_last_call(film: Path) -> None:
    with made_app(film, quiet=True) as client:
        data = (film / "adapters" / "tone.onnx_adapter").read_bytes()
        client.put("/adapters/new", content=data).raise_for_status()

        statuses: list[list[int]] = [[] for _ in range(4)]

        def ask(at: int) -> None:
            calls = ({"adapter": "new", "texts": [TEXT] * 20}, {"model": "new", "text": TEXT})
            while not statuses[at] or statuses[at][-1] == 200:
                statuses[at].append(client.post("/answer", json=calls[at % 2]).status_code)

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, at) for at in range(4)]
            while min(map(len, statuses)) < 2:
                time.sleep(0.01)
            client.delete("/adapters/new").raise_for_status()
            for one in asking:
                one.result()
        assert all(own[-1] in (400, 404) and len(own) > 2 for own in statuses)
        assert "new" not in client.get("/adapters").json()


def test_adapters_loaded_by_name_make_room(film: Path, tenants: Path) -> None:
    with made_app(film, adapters_dir=tenants, limits=Limits(max_adapters=1), quiet=True) as client:
        for name in ("visitor", "guest", "visitor"):
            assert client.post("/answer", json={"model": name, "text": TEXT}).status_code == 200
            assert {"visitor", "guest"} & set(client.get("/adapters").json()) == {name}
        data = (film / "adapters" / "tone.onnx_adapter").read_bytes()
        assert client.put("/adapters/kept", content=data).status_code == 200
        assert client.post("/answer", json={"model": "guest", "text": TEXT}).status_code == 409
        assert client.delete("/adapters/nobody").status_code == 404


def test_a_load_waits_for_adapters_in_use(film: Path, tmp_path: Path) -> None:
    """16 clients request nine adapters, one or two per request, while three may be loaded: all are answered."""
    names = [f"n{number}" for number in range(9)]
    for number, name in enumerate(names):
        source = film / "adapters" / f"{('tone', 'mood')[number % 2]}.onnx_adapter"
        shutil.copy(source, tmp_path / f"{name}.onnx_adapter")
        (tmp_path / f"{name}.json").write_text('{"task": {"type": "single_label", "labels": ["a", "b"]}}')
    with made_app(film, adapters_dir=tmp_path, limits=Limits(max_adapters=3), quiet=True) as client:
        expected = {name: _answer(client, ("tone", "mood")[at % 2])["probability"] for at, name in enumerate(names)}

        def ask(seed: int) -> set[tuple[int, bool]]:
            chosen, found = np.random.default_rng(seed), set()
            for turn in range(9):
                own = [str(name) for name in chosen.choice(names, 1 + turn % 3 // 2, replace=False)]
                answer = client.post("/answer", json={"adapters": own, "texts": [TEXT] * len(own)})
                rows = {one["adapter"]: one["probability"] for one in answer.json().get("rows", ())}
                found.add((answer.status_code, rows == pytest.approx({name: expected[name] for name in own}, abs=1e-5)))
            return found

        with ThreadPoolExecutor(16) as pool:
            assert set().union(*pool.map(ask, range(16))) == {(200, True)}
        assert len(set(names) & set(client.get("/adapters").json())) == 3
        four = client.post("/answer", json={"adapters": names[:4], "texts": [TEXT] * 4})
        assert (four.status_code, "more adapters than can be loaded" in four.json()["error"]) == (409, True)


def test_a_load_times_out(film: Path) -> None:
    """Loading fails while all adapters are in use; unloading one makes room."""
    data = (film / "adapters" / "tone.onnx_adapter").read_bytes()
    limits = Limits(max_adapters=1, request_timeout=0.3)

    async def work() -> None:
        models = Models(named_bundles([str(film)]), SessionSettings(), limits, qualify=False)
        models.start(Metrics())
        await models.load(LoadedAdapter("first", data, by_name=True))
        first = models.find("first")
        assert first is not None
        with first.hold():
            with pytest.raises(RefusedError, match="in use; try again later") as caught:
                await models.load(LoadedAdapter("second", data, by_name=True))
            assert (caught.value.status, caught.value.again) == (503, 1)
            loading = asyncio.create_task(models.load(LoadedAdapter("second", data)))
            await asyncio.sleep(0.05)
            assert (models.find("first"), models.find("second")) == (None, None)
        await loading
        assert (models.find("first"), models.find("second") is not None) == (None, True)
        with pytest.raises(RefusedError, match="1 adapter is loaded; unload one first") as caught:
            await models.load(LoadedAdapter("third", data))  # `second` was not loaded by name
        assert caught.value.status == 409
        await models.unload("second")
        await models.load(LoadedAdapter("third", data))
        await models.stop()

    asyncio.run(work())


def test_mapped_weights_give_the_same_answers(server: httpx2.Client, film: Path) -> None:
    with made_app(film, sessions=SessionSettings(mapped_weights=True), quiet=True) as client:
        _alike(_answer(client, "tone"), _answer(server, "tone"))


def test_the_queue_is_limited(film: Path) -> None:
    with made_app(film, limits=Limits(max_queue=3), quiet=True) as client:
        answer = client.post("/answer", json={"model": "tone", "texts": [TEXT] * 4})
        assert (answer.status_code, "4 rows; expected at most 3 (`max_queue`" in answer.text) == (413, True)
        assert client.post("/answer", json={"model": "tone", "texts": [TEXT] * 3}).status_code == 200


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.exporter"])
def test_server_traces_nothing_without_an_exporter(
    missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name == missing or name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setattr(logging.getLogger("adapter_export.plugins.serve"), "propagate", True)
    with Tracer().span("a call", {}) as span:
        assert span is None
    assert "is not installed" in str(caplog.records[0].args)


@pytest.mark.extended
def test_no_request_is_lost_during_reloads_and_route_changes(film: Path, tmp_path: Path) -> None:
    """Five thousand texts; then the server drains and reports, and a restart restores the routes."""
    versions, state = two_versions(film, tmp_path), tmp_path / "routes.json"
    place = shutil.copytree(film, tmp_path / "film")
    around = {"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "films"}
    with served(place, "--drain", "0.5", "--state", state, **around) as found:
        client, process = found.client, found.process
        counts = asyncio.run(Traffic(client.base_url, place, versions).run(250, clients=8, rows=20, pause=0.1))
        assert counts["right"] == 5_000, counts
        assert min(counts["deployed"], counts["turned"]) >= 3
        process.send_signal(signal.SIGHUP)
        trace = "0af7651916cd43dd8448eb211c80319c"
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": "mine"}
        assert client.get("/adapters", headers=headers).headers["x-request-id"] == "mine"
        client.put("/admin/routes/best", json={"alias": "tone"}).raise_for_status()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert client.get("/v2/health/ready").status_code == 503
        last = client.post("/answer", json={"model": "best", "text": TEXT})  # it drains, and answers
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        log = found.ended()
    assert log.count(f'"trace_id": "0x{trace}"') == 1
    assert '"service.name": "films"' in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith('{"time"')]
    answers = [line for line in lines if line["event"] == "request" and line["path"] == "/answer"]
    assert len(answers) == 251
    assert {(line["model"], line["status"]) for line in answers} == {("best", 200)}
    assert any(line.get("id") == "mine" for line in lines)
    assert sum(line.get("change") == "reload" for line in lines) >= 4
    with made_app(place, state=state, quiet=True) as client:
        assert client.get("/admin/routes").json()["best"]["shares"] == {"tone": 1.0}


@pytest.mark.extended
def test_changes_reach_all_workers_and_their_replacements(film: Path) -> None:
    """A change requested from one process reaches all; a process that dies is replaced by one that has it, too."""
    with served(film, "--drain", "0", "--workers", "2") as found:
        client = found.client

        def everywhere(ask: Callable[[httpx2.Client], object]) -> list[object]:
            answers = []
            for _ in range(8):  # connections go to either worker
                with httpx2.Client(base_url=client.base_url, timeout=30, trust_env=False) as own:
                    answers.append(ask(own))
            return answers

        data = (film / "adapters" / "tone.onnx_adapter").read_bytes()
        client.put("/adapters/new", content=data, params={"labels": "left,right"}).raise_for_status()
        client.put("/admin/routes/best", json={"alias": "new"}).raise_for_status()
        assert client.put("/admin/routes/best", json={"alias": "nobody"}).status_code == 400
        assert not client.post("/v2/repository/models/film/load").json()["changed"]
        assert set(everywhere(lambda own: _answer(own, "best")["adapter"])) == {"new"}
        workers = psutil.Process(found.process.pid).children()
        assert len(workers) == 2
        workers[0].kill()
        workers[0].wait()
        ends = time.monotonic() + 30
        while len(fresh := psutil.Process(found.process.pid).children()) < 2 or '"new"' not in found.log.read_text():
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert fresh[0].pid != workers[0].pid
        assert set(everywhere(lambda own: _answer(own, "best")["adapter"])) == {"new"}
        assert 'requests_total{model="best",status="200"} 16.0' in client.get("/metrics").text
        found.ended()


def test_a_damaged_bundle_is_refused(film: Path, tmp_path: Path) -> None:
    """The old bundle is still served."""
    place = shutil.copytree(film, tmp_path / "film")
    with made_app(place, quiet=True) as client:
        document = json.loads((film / "manifest.json").read_text())
        del document["checksum"]
        (place / "manifest.json").write_text(json.dumps({**document, "producer": "other"}))
        (place / "adapters" / "tone.onnx_adapter").write_bytes(b"damaged")
        answer = client.post("/v2/repository/models/film/load")
        assert answer.status_code == 400, answer.text
        assert _answer(client, "tone")["label"]


def test_bundles_and_adapters_load_from_a_registry(film: Path, registry: OciRegistry) -> None:
    """A bundle, and an adapter loaded by an administrator."""
    bundle, adapter = (f"oci://{registry.host}/team/{name}" for name in ("films:1", "mood:2"))
    ae.push(film, bundle, license="mit")
    ae.push(film / "adapters" / "mood", adapter, license="mit")
    with made_app(bundle, hub=True, quiet=True) as client:

        def load(source: object, status: int) -> None:
            answer = client.post("/v2/repository/models/new/load", json={"parameters": {"source": source}})
            assert answer.status_code == status, answer.text

        load("oci://127.0.0.1:9/team/mood", 502)
        load(f"oci://{registry.host}/team/nobody", 404)
        load("elsewhere://team/mood", 400)
        load(7, 400)
        load(adapter, 200)
        assert _answer(client, "films/tone")["adapter"] == "tone"
        _alike(_answer(client, "new"), _answer(client, "mood"))


def test_invalid_ports_and_hosts_are_refused() -> None:
    with pytest.raises(UsageError, match=r"`port`: must be a port; found 70000; expected 0 to 65,535"):
        ae.serve("bundle", port=70_000)
    with pytest.raises(UsageError, match=r"cannot listen \((?!Unknown).*found no\.such\.host\.invalid:0"):
        listen(ServerSettings(host="no.such.host.invalid", port=0))


def test_ports_in_use_are_refused(server: httpx2.Client) -> None:
    with pytest.raises(UsageError, match=r"cannot listen \(Address already in use\)"):
        listen(ServerSettings(port=server.base_url.port or 0))
