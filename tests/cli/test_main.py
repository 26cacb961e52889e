"""The group: its help, and what becomes of every sort of error."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from adapter_export import __version__
from adapter_export.cli.group import Entry, LazyGroup
from adapter_export.cli.help_page import LONGEST_PAGE
from adapter_export.cli.main import COMMANDS, main

FAILURES = '''
import errno, os, warnings
import click
from adapter_export.errors import FormatError, NothingComparedError, UsageError

@click.command()
@click.argument("what")
@click.option("--json", "as_json", is_flag=True)
def fail(what, as_json):
    """Fail."""
    warnings.warn("a library's word", stacklevel=1)
    match what:
        case "format": raise FormatError("is odd", where="a.json", found="1", expected="2", fix="write it again")
        case "usage": raise UsageError("no such pair of options")
        case "nothing": raise NothingComparedError("nothing was compared")
        case "disk": raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.bin")
        case "memory": raise MemoryError
        case "interrupt": raise KeyboardInterrupt
        case "bug": raise KeyError("slot")
        case "exit": click.get_current_context().exit(1)
'''


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a group with one command that fails as requested."""
    (tmp_path / "failing_command.py").write_text(FAILURES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    fail = Entry("Fail.", lambda: importlib.import_module("failing_command").fail)
    inner = LazyGroup("in", table={"fail": fail})
    group = LazyGroup("tool", table={"fail": fail, "in": Entry("More.", lambda: inner)})

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(group, arguments)

    return call


CODES = {"format": 3, "usage": 2, "nothing": 4, "disk": 3, "memory": 3, "interrupt": 130, "bug": 5, "exit": 1}


@pytest.mark.parametrize(("what", "code"), CODES.items())
def test_every_error_has_its_exit_code_and_no_traceback(run, what: str, code: int) -> None:
    found = run("fail", what)
    assert found.exit_code == code
    assert "Traceback" not in found.output
    assert "a library's word" not in found.output
    assert found.stdout == ""


def test_the_message_has_the_five_facts(run) -> None:
    assert run("fail", "format").stderr == "error: a.json: is odd; found 1; expected 2. Write it again.\n"


def test_a_full_disk_names_the_file(run) -> None:
    found = run("fail", "disk").stderr
    assert "out.bin: could not be read or written (No space left on device)" in found


@pytest.mark.parametrize("group", [(), ("in",)], ids=["a command", "a command of a group in a group"])
@pytest.mark.parametrize("what", ["format", "usage", "nothing", "disk", "memory", "bug"])
def test_errors_are_json_on_stdout_where_json_is_asked_for(run, what: str, group: tuple[str, ...]) -> None:
    found = run(*group, "fail", what, "--json")
    document = json.loads(found.stdout)
    assert document["exit_code"] == found.exit_code == CODES[what]
    assert document["error"]
    assert document["what"]
    assert found.stderr.startswith("error: ")


def test_the_json_of_an_error_has_its_facts(run) -> None:
    assert json.loads(run("fail", "format", "--json").stdout) == {
        "error": "FormatError",
        "what": "is odd",
        "where": "a.json",
        "found": "1",
        "expected": "2",
        "fix": "write it again",
        "exit_code": 3,
    }


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("fail",), "Missing argument"),
        (("in", "fail"), "Missing argument"),
        (("in", "fial"), "did you mean `fail`?"),
        (("in",), "No such option '--json'"),
        ((), "No such option '--json'"),
    ],
)
def test_wrong_calls_print_one_json_document(run, call: tuple[str, ...], words: str) -> None:
    found = run(*call, "--json")
    assert found.exit_code == 2
    document = json.loads(found.stdout)
    assert document["error"] == "UsageError"
    assert words in document["what"]
    assert words in found.stderr


def test_interrupts_print_a_json_document(run) -> None:
    found = run("fail", "interrupt", "--json")
    assert json.loads(found.stdout)["exit_code"] == found.exit_code == 130


def test_a_bug_leaves_its_traceback_in_a_file(run, tmp_path: Path) -> None:
    found = run("fail", "bug")
    assert "This is a bug in adapter-export." in found.stderr
    (report,) = tmp_path.glob("adapter-export-*.txt")
    assert str(report) in found.stderr
    text = report.read_text()
    assert "KeyError: 'slot'" in text
    assert __version__ in text


def test_debug_shows_the_traceback_and_the_warnings() -> None:
    found = CliRunner().invoke(main, ["--debug", "inspect", "nowhere"])
    assert found.exit_code == 3
    assert "Traceback" in found.stderr


def test_the_help_names_every_command_and_has_examples() -> None:
    found = CliRunner().invoke(main, ["--help"])
    assert found.exit_code == 0
    assert all(f"  {name} " in found.output for name in COMMANDS)
    assert "adapter-export build model.pt --adapters a -o bundle" in found.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_json_and_examples(name: str) -> None:
    found = CliRunner().invoke(main, [name, "--help"])
    assert found.exit_code == 0, found.output
    assert "--json" in found.output
    assert f"adapter-export {name} " in found.output.split("Examples:")[1]


def _help(name: str, *section: str, width: int = 100) -> Result:
    return CliRunner().invoke(main, [name, "--help", *section], terminal_width=width)


def _pages(name: str, width: int = 100) -> Iterator[list[str]]:
    command = main.get_command(click.Context(main), name)
    for section in ("", *getattr(command, "sections", ())):
        found = _help(name, *([section] if section else []), width=width)
        assert found.exit_code == 0, found.output
        yield found.output.splitlines()


@pytest.mark.parametrize("name", COMMANDS)
def test_no_page_of_help_is_long_and_every_option_is_explained(name: str) -> None:
    """A page that is too long: give `@command` its `sections`, or its docstring fewer words."""
    pages = list(_pages(name))
    assert max(map(len, [*pages, *_pages(name, 80)])) <= LONGEST_PAGE
    lines = [line.strip() for page in pages for line in page]
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for param in command.params:
        if isinstance(param, click.Option):
            flags = ", ".join(sorted(param.opts, key=len))
            assert any(line == flags or line.startswith(f"{flags} ") for line in lines), flags
            typed = "[default:" in (param.help or "")
            assert not (typed and param.show_default), f"{flags} shows two defaults"


def test_help_answers_the_first_question() -> None:
    first = CliRunner().invoke(main, ["run", "--help"]).output
    assert "--adapter NAME" in first.partition("Examples:")[0]
    chain = CliRunner().invoke(main, ["--help"]).output.partition("From a model to a service:")[2]
    (trained,) = re.findall(r"train .* -o (\S+)", chain)
    assert f"--adapters {trained} " in chain, "only adapters of the chain"


def test_a_section_of_options_is_explained_alone() -> None:
    brief = _help("train").output
    assert "train --help SECTION`:" in brief
    assert "  kind " in brief
    assert "Kronecker" not in brief
    kind = _help("train", "kind").output
    assert "Kronecker" in kind
    assert "--epochs" not in kind
    assert _help("train", "model.pt").output == brief


def _completions(*words: str) -> list[str]:
    complete = ShellComplete(main, {}, "adapter-export", "_ADAPTER_EXPORT_COMPLETE")
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


def test_a_shell_completes_commands_options_kinds_variants_and_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _completions("ca") == ["capture"]
    assert _completions("train", "m", "--valid") == ["--validation", "--validation-data"]
    assert _completions("train", "--kind", "houls") == ["houlsby"]
    assert _completions("sweep", "m", "--kinds", "houlsby,ia") == ["houlsby,ia3"]
    assert _completions("build", "m", "--variants", "slots,b") == ["slots,bank"]
    assert _completions("train", "--help", "fu") == ["fusion"]
    for name in ("one", "two"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "adapter_graph.json").touch()
    (tmp_path / "manifest.json").write_text('{"adapters": [{"name": "tone"}, {"name": "topic"}]}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert _completions("build", "m", "--adapters", "two,o") == ["two,one"]
    assert _completions("run", ".", "--adapter", "to") == ["tone", "topic"]
    assert _completions("remove", ".", "ton") == ["tone"]
    assert _completions("run", "nowhere", "--adapter", "") == []


def test_a_near_miss_is_named() -> None:
    found = CliRunner().invoke(main, ["bild"])
    assert found.exit_code == 2
    assert "did you mean `build`?" in found.stderr
    assert "train" in CliRunner().invoke(main, ["xyz"]).stderr


def test_version_option_prints_the_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"adapter-export {__version__}\n"
