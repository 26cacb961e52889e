"""Routes: shares are exact, stay with a request, and every change can be reverted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiers import examples

from adapter_export.errors import AdapterExportError, FormatError
from adapter_export.plugins.serve.routes import Route, Routes, load_routes, route_of, save_routes

NAMES = st.sampled_from(["a", "b", "c", "d"])
SHARES = st.dictionaries(NAMES, st.integers(0, 9), min_size=1).filter(lambda parts: sum(parts.values()) > 0)
ROUTES = st.builds(
    lambda parts, shadow: Route({name: part / sum(parts.values()) for name, part in parts.items()}, shadow),
    SHARES,
    st.none() | NAMES,
)
CHANGES = st.lists(st.tuples(st.sampled_from(["best", "latest"]), st.none() | ROUTES), max_size=8)


def _all(changes: list[tuple[str, Route | None]]) -> list[Routes]:
    states = [Routes()]
    for name, route in changes:
        if route is not None:
            states.append(states[-1].having(name, route, lambda _: True))
        elif name in states[-1].table:
            states.append(states[-1].lacking(name))
    return states


@given(CHANGES)
def test_rollback_reverts_one_change(changes: list[tuple[str, Route | None]]) -> None:
    states = _all(changes)
    found = states[-1]
    for state in reversed(states[:-1]):
        found = found.back()
        assert found == state
    with pytest.raises(AdapterExportError, match="no change to roll back"):
        found.back()


@examples(25)
@given(CHANGES)
def test_a_state_file_restores_the_routes(tmp_path_factory: pytest.TempPathFactory, changes: list) -> None:
    path, routes = tmp_path_factory.mktemp("state") / "routes.json", _all(changes)[-1]
    save_routes(routes, path)
    assert load_routes(path) == routes


@given(ROUTES, st.text())
def test_a_request_always_gets_the_same_model(route: Route, request: str) -> None:
    chosen = route.choose("best", request)
    assert route.shares[chosen] > 0
    assert Routes({"best": route}).choose("best", request) == (chosen, route.shadow)
    assert Routes().choose("best", request) == ("best", None)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_requests_are_divided_by_shares(share: float) -> None:
    route, count = Route({"a": 1 - share, "b": share}), 4000
    found = sum(route.choose("best", str(number)) == "b" for number in range(count)) / count
    assert found == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


def test_a_growing_share_keeps_its_requests() -> None:
    before, after = Route({"a": 0.9, "b": 0.1}), Route({"a": 0.5, "b": 0.5})
    for number in map(str, range(500)):
        if before.choose("best", number) == "b":
            assert after.choose("best", number) == "b"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"shares": {"a": 1.5}}, "a share is out of range; found 1.5"),
        ({"shares": {"a": -0.5, "b": 1.5}}, "a share is out of range; found -0.5"),
        ({"shares": {"a": 0.9, "b": 0.2}}, "add up to 1"),
        ({"alias": "nobody"}, "names an unknown model; found `nobody`"),
        ({"alias": "a", "shadow": "nobody"}, "names an unknown model; found `nobody`"),
        ({"shares": {}}, "malformed route"),
        ({"shares": {"a": True}}, "malformed route"),
        ({"alias": "a", "shares": {"a": 1}}, "malformed route"),
        ({"alias": "a", "other": 1}, "malformed route"),
        ([], "malformed route"),
    ],
)
def test_malformed_routes_are_refused(document: object, words: str) -> None:
    with pytest.raises(AdapterExportError, match=words):
        Routes().having("best", route_of(document), {"a", "b"}.__contains__)


@pytest.mark.parametrize(
    "text", ["[]", '{"version": "2.0"}', '{"version": "1.0", "before": [], "routes": {"x": {"shares": {"a": 2}}}}']
)
def test_malformed_state_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "routes.json"
    path.write_text(text)
    with pytest.raises(FormatError):
        load_routes(path)
