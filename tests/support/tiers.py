"""The two tiers of the tests: a bare `pytest` runs the quick one, `pytest --all` adds the extended one.

A test is extended if it has the mark `extended` or uses a fixture with `@starts_programs`. Any other test that starts a
program fails, unless the mark `starts_program` says why it is quick. Tests that the command line selects by path, `-k`
or `-m` run in both tiers.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import hypothesis
import pytest

_Fixture = TypeVar("_Fixture", bound=Callable[..., Any])

_EVERYTHING = pytest.StashKey[bool]()
_EXAMPLES = 100
"""Examples of a property in `pytest --all`, by default."""
_QUICK_EXAMPLES = 10
_OF_LIBRARIES = {"fc-list", "gcc", "cc", "ld", "ldconfig", "objdump", "uname", "file"}
"""Programs that libraries start to find fonts and shared objects."""

_started: list[str] = []


def starts_programs(fixture: _Fixture) -> _Fixture:
    """Mark the function of a fixture that starts programs, or needs those that may be missing."""
    vars(fixture)["starts_programs"] = True
    return fixture


def examples(number: int, **options: Any) -> hypothesis.settings:
    """Settings of a property with `number` examples in `pytest --all`, and a tenth of them, but at least five, else."""
    scaled = number * hypothesis.settings.default.max_examples // _EXAMPLES
    return hypothesis.settings(max_examples=max(scaled, min(5, number)), **options)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--all", action="store_true", help="run the extended tests, too, and all examples of properties")
    group.addoption("--tiers", action="store_true", help="print tests and seconds by tier and folder at the end")


def pytest_configure(config: pytest.Config) -> None:
    options = config.option
    named = config.args_source is pytest.Config.ArgsSource.ARGS or options.keyword or options.markexpr
    config.stash[_EVERYTHING] = everything = bool(options.all or named)
    # the machine may do something else: no deadline
    hypothesis.settings.register_profile("all", deadline=None, max_examples=_EXAMPLES)
    hypothesis.settings.register_profile("quick", deadline=None, max_examples=_QUICK_EXAMPLES)
    hypothesis.settings.load_profile("all" if everything else "quick")
    sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen":
        program = os.fsdecode(arguments[0])
        if program.rpartition("/")[2] not in _OF_LIBRARIES:
            _started.append(program)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the extended tests, and leave them out of the quick tier."""
    for item in items:
        if _uses_programs(item):
            item.add_marker("extended")
        if item.get_closest_marker("extended"):
            item.user_properties.append(("tier", "extended"))
    if not config.stash[_EVERYTHING]:
        extended = [item for item in items if item.get_closest_marker("extended")]
        config.hook.pytest_deselected(items=extended)
        items[:] = [item for item in items if not item.get_closest_marker("extended")]


def _uses_programs(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    definitions = item._fixtureinfo.name2fixturedefs.values()
    return any(getattr(definition[-1].func, "starts_programs", False) for definition in definitions)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    _started.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail a quick test that started a program, in its fixtures or itself."""
    found = yield
    if _started and not any(map(item.get_closest_marker, ("extended", "starts_program"))):
        pytest.fail(
            f"starts `{_started[0]}`: mark the test `extended`, or the fixture with `@starts_programs`; "
            "if the program ends within a second, mark the test `starts_program`",
            pytrace=False,
        )
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not terminalreporter.config.getoption("tiers"):
        return
    tests, seconds = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for report in (one for found in terminalreporter.stats.values() for one in found):
        if isinstance(report, pytest.TestReport):
            folder = report.nodeid.split("/")[1] if report.nodeid.count("/") > 1 else "."
            key = dict(report.user_properties).get("tier", "quick"), folder
            seconds[key] += report.duration
            tests[key] += report.when == "call"
    terminalreporter.section("tests and seconds by tier and folder")
    for tier in ("quick", "extended"):
        keys = sorted((key for key in seconds if key[0] == tier), key=lambda key: -seconds[key])
        rows = [(tier, sum(tests[key] for key in keys), sum(seconds[key] for key in keys))]
        rows += [(f"  {key[1]}", tests[key], seconds[key]) for key in keys]
        for name, number, time in rows:
            terminalreporter.write_line(f"{name:<20}{number:>7}{time:>9.1f}")
