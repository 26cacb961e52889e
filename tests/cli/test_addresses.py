"""Addresses of hubs at every door: each argument that is read, of each command, against a hub on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import chdir
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hub_server import HubServer, hub_here

from adapter_export.cli.main import main
from adapter_export.cli.values import ADDRESS, LOCAL_PATH

REMOTE = dict.fromkeys(("model", "adapter", "tokenizer", "artifact", "any"), "hf://me/none")
REMOTE |= {"table": "hf://datasets/me/none"}
DOORS = (
    ("model", "capture {} -o new"),
    ("tokenizer", "capture --trust-pickle {pickle} --tokenizer {} -o new --input x=float32[batch,4]"),
    ("model", "sites {}"),
    ("model", "plan {}"),
    ("model", "train {} --data {table} -o new"),
    ("table", "train {model} --data {} -o new"),
    ("table", "train {model} --data {table} --validation-data {} -o new"),
    ("table", "train {model} --data {table} --test-data {} -o new"),
    ("tokenizer", "train {model} --data {table} --tokenizer {} -o new"),
    ("artifact", "train {model} --data {table} --fuse {},{topic} -o new"),
    ("model", "sweep {} --data {table} -o new"),
    ("table", "sweep {model} --data {} -o new"),
    ("table", "sweep {model} --data {table} --validation-data {} -o new"),
    ("table", "sweep {model} --data {table} --test-data {} -o new"),
    ("tokenizer", "sweep {model} --data {table} --tokenizer {} -o new"),
    ("model", "distil {} --data {table} -o new"),
    ("table", "distil {model} --data {} -o new"),
    ("artifact", "distil {model} --data {table} --adapter {} -o new"),
    ("table", "distil {model} --data {table} --adapter {topic} --unlabelled {} -o new"),
    ("table", "distil {model} --data {table} --validation-data {} -o new"),
    ("table", "distil {model} --data {table} --test-data {} -o new"),
    ("tokenizer", "distil {model} --data {table} --tokenizer {} -o new"),
    ("artifact", "drop {} --base {model} --data {table}"),
    ("model", "drop {topic} --base {} --data {table}"),
    ("table", "drop {topic} --base {model} --data {}"),
    ("tokenizer", "drop {topic} --base {model} --data {table} --tokenizer {}"),
    ("artifact", "lint {}"),
    ("model", "lint {topic} --base {}"),
    ("table", "lint {topic} --data {}"),
    ("tokenizer", "lint {topic} --base {model} --data {table} --tokenizer {}"),
    ("artifact", "run-many {} {table} --adapter topic -o new"),
    ("table", "run-many {bundle} {} --adapter topic -o new"),
    ("artifact", "compose stack {} {topic} -o new"),
    ("adapter", "import adapterhub {} --base {model} -o new"),
    ("model", "import adapterhub {topic} --base {} -o new"),
    ("adapter", "import peft {} --base {model} -o new"),
    ("model", "import peft {topic} --base {} -o new"),
    ("model", "import finetuned {} --base {model} -o new"),
    ("model", "import finetuned {model} --base {} -o new"),
    ("adapter", "doctor {} --base {model}"),
    ("model", "doctor {topic} --base {}"),
    ("model", "merge {} --adapter {topic} -o new"),
    ("artifact", "merge {model} --adapter {} -o new"),
    ("model", "pack {tensors} --base {} --kind lora -o new"),
    ("artifact", "export {} --to peft --base {model} -o new"),
    ("model", "export {topic} --to peft --base {} -o new"),
    ("artifact", "add {bundle} {} --against {model}"),
    ("model", "add {bundle} {topic} --against {}"),
    ("model", "build {} --adapters {topic} -o new"),
    ("artifact", "build {model} --adapters {} -o new"),
    ("tokenizer", "build {model} --adapters {topic} --tokenizer {} -o new"),
    ("artifact", "check {}"),
    ("model", "check {bundle} --against {}"),
    ("artifact", "check {bundle} --adapters {}"),
    ("table", "check {bundle} --against {model} --data {} --text text"),
    ("any", "compare {} {bundle} --data {table}"),
    ("table", "compare {bundle} {topic} --data {}"),
    ("model", "compare {topic} {tone} --base {} --data {table}"),
    ("artifact", "evaluate {} --data {table}"),
    ("table", "evaluate {bundle} --adapter topic --data {}"),
    ("model", "evaluate {bundle} --adapter topic --data {table} --against {}"),
    ("any", "inspect {}"),
    ("table", "evaluate {bundle} --adapter topic --data {table} --training-data {}"),
    ("artifact", "run {} --text a"),
    ("artifact", "generate {} --prompt a"),
    ("table", "run {bundle} --adapter topic --data {}"),
    ("artifact", "verify {}"),
    ("artifact", "bench {}"),
    ("table", "bench {bundle} --adapter topic --data {} --seconds 0.01 --providers cpu"),
    ("artifact", "serve {} --port 0"),
    ("artifact", "ship {} --layout docker -o new"),
)
"""Each argument that is read from a hub, by its contents, in a command line that is right but for it."""

HERE = (
    "add {} {topic} --against {model}",
    "remove {} topic",
    "sign {} --key {table}",
    "push {} hf://me/other",
    "push {bundle} hf://me/other --evaluation {}",
    "pack {} --base {model} --kind lora -o new",
)
"""Arguments that are read or changed locally, and are not plain paths for click."""

LOCAL = {
    *("output", "out", "report", "svg", "plot", "repro", "write_site_map", "state"),  # written
    *("site_map", "key", "certificate", "card", "baseline", "arrays", "adapter_file", "adapters_dir", "prompt"),
    "gguf_base",
    *("json_schema", "lora_root"),  # read on this machine, whose administrator names them
    *(
        "add bundle",
        "remove bundle",
        "sign bundle",
        "sweep bundle",
        "push path",
        "identify folder",
    ),  # changed, written or sent
}
"""Paths that are never addresses: a new one is a door, or is named here."""

UNTRIED = {
    *(("lint", "validation_data"), ("lint", "test_data")),  # the options of `train`, not read
    ("identify", "weights"),  # for a folder of onnxruntime-genai
    ("build", "chat_template"),  # for a base that generates
    ("import", "finetuned", "data"),  # for a model that differs from the base
}

QUICK = (
    *("capture {} -o new", "sites {}", "train {} --data {table} -o new", "import peft {} --base {model} -o new"),
    *("lint {}", "check {}", "inspect {}", "run {} --text a", "run {bundle} --adapter topic --data {}"),
)
"""Doors of the quick tests; most others open a model first."""

LISTS = {"compose": "adapters", "train": "fuse", "add": "adapters", "build": "adapters", "check": "adapters"}
"""Lists of addresses of adapters."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("ADAPTER_EXPORT_CACHE", str(tmp_path / "cache"))
    with hub_here(monkeypatch, tmp_path / "hf") as running:
        yield running


@pytest.fixture(scope="session")
def files(model: Path, adapters: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Arguments that are right, by the names in `DOORS`."""
    folder = tmp_path_factory.mktemp("given")
    rows = [f"{word},{label}" for label in "abc" for word in ("good", "bad", "dull", "fine", "moon")]
    (folder / "table.csv").write_text("\n".join(["text,label", *rows]))
    (folder / "pickle.pt").write_bytes(b"\x80\x02")
    names = {name: adapters / name for name in ("topic", "tone")}
    names |= {"tensors": adapters / "topic.safetensors", "table": folder / "table.csv", "pickle": folder / "pickle.pt"}
    return {**names, "model": model, "bundle": bundle}


def words_of(line: str, address: str, files: Mapping[str, object]) -> list[str]:
    return [word.format_map(files) for word in line.replace("{}", address).split()]


def commands(group: click.Group = main, *names: str) -> Iterator[tuple[list[str], click.Command]]:
    """Yield every command with its name, of one word or two."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        elif command is not None:
            yield [*names, name], command


def test_the_table_has_every_argument_that_is_read_from_a_hub() -> None:
    """An argument of a new command is a plain path, which click refuses to take from a hub, or it has a line here."""
    found, expected = set(), set()
    words = [words_of(line, REMOTE[kind], defaultdict(lambda: "x")) for kind, line in DOORS]
    for name, command in commands():
        lines = [line[len(name) :] for line in words if line[: len(name)] == name]
        expected |= {(*name, str(one.name)) for one in command.params if one.type is ADDRESS}
        expected |= {(*name, LISTS[name[0]])} if name[0] in LISTS else set()
        for line in lines:
            given = command.make_context(name[-1], line).params
            found |= {(*name, one) for one, value in given.items() if "://" in str(value)}
    assert found == expected - UNTRIED


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        pytest.param(*door, id=door[1].replace("{}", "HERE"), marks=() if door[1] in QUICK else pytest.mark.extended)
        for door in DOORS
    ],
)
def test_a_door_asks_the_hub(kind: str, line: str, hub: HubServer, files: dict[str, Path], tmp_path: Path) -> None:
    address = REMOTE[kind]
    asked = f"GET /api/{'datasets' if kind == 'table' else 'models'}/me/none"
    ids = [address, *(["other/none"] if kind in ("model", "adapter", "tokenizer", "any") else [])]
    with chdir(tmp_path):
        for given in ids:
            done = CliRunner().invoke(main, words_of(line, given, files))
            assert (done.exit_code, "the repository does not exist" in done.stderr) == (8, True), done.output
            assert asked.replace("me/none", given.partition("://")[2].removeprefix("datasets/") or given) in hub.asked
            assert f"error: {given if '://' in given else f'hf://{given}'}" in done.stderr
            assert "hf:/m" not in done.output
        assert not Path("new").exists()


@pytest.mark.parametrize("line", HERE)
def test_arguments_that_must_be_local_are_not_fetched(line: str, hub: HubServer, files: dict[str, Path]) -> None:
    done = CliRunner().invoke(main, words_of(line, "hf://me/none", files))
    assert done.exit_code in (2, 3), done.output
    assert "hf://me/none" in done.stderr
    assert "hf:/m" not in done.output
    assert not hub.asked


@pytest.mark.parametrize("line", ["capture ./me/none -o new", "sites ./me/none", "inspect ../me/none", "plan me/x/"])
def test_a_path_is_no_id(line: str, hub: HubServer, tmp_path: Path) -> None:
    with chdir(tmp_path):
        done = CliRunner().invoke(main, line.split())
    assert done.exit_code == 3, done.output
    assert not hub.asked


def test_no_argument_loses_a_slash(hub: HubServer, tmp_path: Path) -> None:
    """Every path of every command that is no door, an output too: refused before anything is done."""
    paths = [(name, command, one) for name, command in commands() for one in command.params if one.type is LOCAL_PATH]
    unnamed = {f"{' '.join(name)} {one.name}" for name, _, one in paths if one.name not in LOCAL} - LOCAL
    assert not unnamed, "mark these with `Address` and give them a line in `DOORS`, or name them in `LOCAL`"
    assert len(paths) > 50
    with chdir(tmp_path):
        for name, command, tried in paths:
            words = list(name)
            for one in command.params:
                other = one.type.choices[0] if isinstance(one.type, click.Choice) else "x"
                value = "hf://me/none" if one is tried else str(other)
                if one is tried or one.required:
                    words += [value] if isinstance(one, click.Argument) else [one.opts[0], value]
            done = CliRunner().invoke(main, words)
            assert done.exit_code == 2, (words, done.output)
            assert "`hf://me/none` is not a local path" in done.stderr, (words, done.output)
        assert not list(Path.cwd().iterdir())
    assert not hub.asked
