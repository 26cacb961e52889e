"""Tiers of the tests: a bare `pytest` runs the quick one, `pytest --all` adds the extended one, `--nightly` the rest.

A test is extended if it has the mark `extended`, uses a fixture with `@extended`, or takes long according to
`tests/durations.txt`. Any other test that starts a program fails, unless its mark `starts_program` says that the
program ends at once. Tests that the command line selects by path, `-k`, `-m` or `--lf` run in both tiers.

A test is nightly if a line of `tests/nightly.txt` is its name or begins it: it takes long, and a quicker test of the
same module covers its subject.

`pytest --nightly --store-durations` measures the tests, their fixtures and the results that they share, and writes the
list. Only the lines of tests decide on tiers; the others show where the rest of the time goes.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import hypothesis
import pytest
from once import processor_seconds, shared_seconds

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

_Fixture = TypeVar("_Fixture", bound=Callable[..., Any])

_LONG_S = 0.2
"""Processor seconds from which on a test is long, and listed."""

_EVERYTHING, _NIGHTLY = pytest.StashKey[bool](), pytest.StashKey[bool]()
_FIXTURE, _SHARED, _END = "fixture ", "shared ", "end of "
"""Prefixes of the lines of fixtures (all their set-ups, in all workers), of results of `once()` and `kept()`, and of
files: what ended with their tests, such as a server, whose seconds the system counts then.
"""
_PROPERTY = "spent_seconds"

_EXAMPLES = 100
"""Examples of a property in `pytest --all`, by default."""
_QUICK_EXAMPLES = 10
_OF_LIBRARIES = {"fc-list", "gcc", "cc", "ld", "ldconfig", "objdump", "uname", "file", "lscpu"}
"""Programs that libraries start to find fonts and shared objects."""

_started: list[str] = []
_spent: dict[str, float] = {}
_shared_before: dict[str, float] = {}
"""Processor seconds that the current test has taken, by the names of their lines; those of shared results before it."""


def extended(fixture: _Fixture) -> _Fixture:
    """Mark the function of a fixture whose tests are extended: it starts programs, or takes long."""
    vars(fixture)["is_extended"] = True
    return fixture


def some_quick(names: Iterable[str], *quick: str) -> list[ParameterSet | str]:
    """Parameters of a test or of a fixture, of which all but some are extended."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.extended) for name in names]


def examples(number: int, **options: Any) -> hypothesis.settings:
    """Settings of a property with `number` examples in `pytest --all`, and a tenth of them, but at least five, else."""
    scaled = number * hypothesis.settings.default.max_examples // _EXAMPLES
    return hypothesis.settings(max_examples=max(scaled, min(5, number)), **options)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--all", action="store_true", help="run the extended tests, too, and all examples of properties")
    group.addoption("--nightly", action="store_true", help="run the nightly tests, too, and those of `--all`")
    group.addoption("--store-durations", action="store_true", help="write the tests that take long into a list")
    group.addoption("--tiers", action="store_true", help="print tests and seconds by tier and folder at the end")


def pytest_configure(config: pytest.Config) -> None:
    options = config.option
    is_path = config.args_source is pytest.Config.ArgsSource.ARGS
    chosen = is_path or options.keyword or options.markexpr or getattr(options, "lf", False)
    config.stash[_EVERYTHING] = everything = bool(options.all or options.nightly or chosen)
    config.stash[_NIGHTLY] = bool(options.nightly or chosen)
    # the machine may do something else: no deadline
    hypothesis.settings.register_profile("all", deadline=None, max_examples=_EXAMPLES)
    hypothesis.settings.register_profile("quick", deadline=None, max_examples=_QUICK_EXAMPLES)
    hypothesis.settings.load_profile("all" if everything else "quick")
    sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen":
        program, words = os.fsdecode(arguments[0]), arguments[1]
        is_trial = any("adapter_export.safe_io.child" in str(word) for word in words)  # the package itself starts it
        if program.rpartition("/")[2] not in _OF_LIBRARIES and not is_trial:
            _started.append(program)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the extended tests, and leave them out of the quick tier."""
    durations = _read_durations(config.rootpath)
    if not config.stash[_NIGHTLY]:
        nightly = _read_nightly(config.rootpath)
        late = [item for item in items if item.nodeid.startswith(nightly)]
        config.hook.pytest_deselected(items=late)
        items[:] = [item for item in items if not item.nodeid.startswith(nightly)]
    for item in items:
        if _uses_extended(item) or durations.get(item.nodeid, 0) >= _LONG_S:
            item.add_marker("extended")
        if item.get_closest_marker("extended"):
            item.user_properties.append(("tier", "extended"))
    if not config.stash[_EVERYTHING]:
        extended = [item for item in items if item.get_closest_marker("extended")]
        config.hook.pytest_deselected(items=extended)
        items[:] = [item for item in items if not item.get_closest_marker("extended")]


def _uses_extended(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    definitions = item._fixtureinfo.name2fixturedefs.values()
    return any(getattr(definition[-1].func, "is_extended", False) for definition in definitions)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[Any]:
    """Count the seconds of a fixture, without those of fixtures that it asks for."""
    before, of_others = processor_seconds(), sum(_spent.values())
    try:
        return (yield)
    finally:
        name = f"{_FIXTURE}{fixturedef.baseid}::{fixturedef.argname}"
        alone = processor_seconds() - before - (sum(_spent.values()) - of_others)
        _spent[name] = _spent.get(name, 0) + alone


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[bool | None]:
    _spent.clear()
    _shared_before.clear()
    _shared_before.update(shared_seconds())
    return (yield)


def pytest_runtest_setup() -> None:
    _started.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    before = processor_seconds()
    try:
        return (yield)
    finally:
        _spent[item.nodeid] = processor_seconds() - before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail a quick test that started a program, in its fixtures or itself."""
    before = processor_seconds()
    found = yield
    _spent[f"{_END}{_file(item.nodeid)}"] = processor_seconds() - before
    if item.config.getoption("store_durations"):
        for name, seconds in shared_seconds().items():
            _spent[f"{_SHARED}{name}"] = seconds - _shared_before.get(name, 0)
        item.user_properties.append((_PROPERTY, dict(_spent)))
    if _started and not any(map(item.get_closest_marker, ("extended", "starts_program"))):
        pytest.fail(
            f"starts `{_started[0]}`: mark the test `extended`, or the fixture with `@extended`; "
            "if the program ends within a second, mark the test `starts_program`",
            pytrace=False,
        )
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    found = [
        one for reports in terminalreporter.stats.values() for one in reports if isinstance(one, pytest.TestReport)
    ]
    if config.getoption("tiers"):
        _show(terminalreporter, found)
    if config.getoption("store_durations"):
        seconds: defaultdict[str, float] = defaultdict(float)
        for report in found:
            spent: Any = dict(report.user_properties).get(_PROPERTY, {}) if report.when == "teardown" else {}
            for name, time in spent.items():
                seconds[name] += time
        _store(config, seconds)


def _show(reporter: pytest.TerminalReporter, reports: Iterable[pytest.TestReport]) -> None:
    """Print tests, and the seconds of workers that they took, by tier and folder."""
    tests, seconds = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for report in reports:
        file = report.nodeid.partition("::")[0]
        folder = file.split("/")[1] if file.count("/") > 1 else "."
        key = dict(report.user_properties).get("tier", "quick"), folder
        seconds[key] += report.duration
        tests[key] += report.when == "call"
    reporter.section("tests and seconds by tier and folder")
    for tier in ("quick", "extended"):
        keys = sorted((key for key in seconds if key[0] == tier), key=lambda key: -seconds[key])
        rows = [(tier, sum(tests[key] for key in keys), sum(seconds[key] for key in keys))]
        rows += [(f"  {key[1]}", tests[key], seconds[key]) for key in keys]
        for name, number, time in rows:
            reporter.write_line(f"{name:<20}{number:>7} tests{time:>9.1f} s")


def _durations(root: Path) -> Path:
    return root / "tests" / "durations.txt"


def _read_durations(root: Path) -> dict[str, float]:
    """Read the processor seconds of tests that take long, by their names."""
    if not _durations(root).exists():
        return {}
    lines = _durations(root).read_text("utf-8").splitlines()
    return {name: float(seconds) for seconds, name in (line.split(" ", 1) for line in lines)}


def _read_nightly(root: Path) -> tuple[str, ...]:
    """Read the names, or their beginnings, of the nightly tests."""
    path = root / "tests" / "nightly.txt"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return tuple(line for line in lines if line and not line.startswith("#"))


def _file(name: str) -> str:
    return name.removeprefix(_FIXTURE).removeprefix(_END).partition("::")[0]


def _store(config: pytest.Config, measured: Mapping[str, float]) -> None:
    """Write what takes long: in place of the list after a run of all tests, else in place of the same names."""
    is_whole = config.option.nightly and config.args_source is not pytest.Config.ArgsSource.ARGS
    stored = {} if is_whole else _read_durations(config.rootpath)
    # the tests of a file that ran as a whole are known anew: one that has become quick leaves the list
    files = {_file(name) for name in measured if not name.startswith((_FIXTURE, _SHARED, _END))}
    stored = {name: time for name, time in stored.items() if name not in measured and _file(name) not in files}
    stored |= {name: time for name, time in measured.items() if time >= _LONG_S}
    root = config.rootpath
    present = {name for name in stored if name.startswith(_SHARED) or (root / _file(name)).exists()}
    _durations(root).write_text("".join(f"{stored[name]:.1f} {name}\n" for name in sorted(present)), "utf-8")
