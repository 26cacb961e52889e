"""The command line of a benchmark, for single runs and for all benchmarks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from adapter_export.errors import AdapterExportError, UsageError
from adapter_export.runtime.graphs import Provider
from kit.machine import description, load_average, warn_if_busy
from kit.subject import Subject, prepared
from kit.tables import Table
from kit.timing import Pace, clock_of

COMMON = ("model", "bottleneck", "adapters")

OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"type": Path, "help": "a torch archive, a Hugging Face folder or an ONNX file; MiniLM if not given"},
    "bottleneck": {"type": int, "default": 64, "help": "of the Houlsby adapters"},
    "adapters": {"type": int, "default": 32, "help": "how many the bundle has, and how many requests are mixed"},
    "provider": {"choices": ("cpu", "cuda"), "default": "cpu", "help": "where the graphs run"},
    "threads": {"type": int, "default": 1, "help": "how many one operation may use"},
    "rounds": {"type": int, "default": 30, "help": "how often calls are repeated, at most"},
    "seconds": {"type": float, "default": 15.0, "help": "for each row of a table, but five rounds are always run"},
    "shapes": {"default": "1x16,1x64,1x128,32x16,32x64", "help": "batch x tokens of calls"},
    "lengths": {"default": "16,64", "help": "tokens of the requests that are mixed, at most"},
    "counts": {"default": "1,100,1000", "help": "how many adapters are held in memory"},
    "sessions": {"default": "1,2,8", "help": "how many sessions are held in memory, one for each adapter"},
    "callers": {"default": "1,2,4,8", "help": "how many threads call one session at once"},
    "tenants": {"type": int, "default": 1024, "help": "how many adapters requests are for"},
    "repeats": {"type": int, "default": 3, "help": "how often commands are run"},
}


@dataclass(frozen=True)
class Settings:
    """Parsed values of `OPTIONS`."""

    provider: Provider
    threads: int
    rounds: int
    seconds: float
    shapes: Sequence[tuple[int, int]]
    lengths: Sequence[int]
    counts: Sequence[int]
    sessions: Sequence[int]
    callers: Sequence[int]
    tenants: int
    repeats: int

    @property
    def pace(self) -> Pace:
        """Return the repetitions for single-threaded calls."""
        return Pace(self.rounds, self.seconds, clock_of(self.provider, self.threads))


@dataclass(frozen=True)
class Part:
    """A benchmark.

    Attributes:
        words: description; the first line is the name.
        uses: those of `OPTIONS` that it reads, besides `COMMON`.
        measure: runs the benchmark.
    """

    words: str
    uses: Sequence[str]
    measure: Callable[[Subject, Settings], list[Table]]

    def main(self) -> None:
        """Run it by the command line of this process."""
        arguments = parser(self.words, self.uses).parse_args()
        run_parts([self], arguments)


def parser(words: str, uses: Sequence[str]) -> argparse.ArgumentParser:
    """A parser with some of the options; `settings_of` takes the defaults of the others."""
    made = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, option in OPTIONS.items():
        if name in (*COMMON, *uses):
            default = f" ({option['default']})" if "default" in option else ""
            made.add_argument(f"--{name}", **{**option, "help": option["help"] + default})
    made.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    return made


def run_parts(parts: Sequence[Part], arguments: argparse.Namespace) -> tuple[str, list[Table]]:
    """Run benchmarks one after the other on one subject, and print each result, or all of them as JSON.

    Errors end with one sentence and an exit code.

    Returns:
        The machine in words, and all tables.
    """
    load, tables = load_average(), list[Table]()
    warn_if_busy(load)
    with _one_sentence():
        settings = settings_of(arguments)
        machine = description(load, settings.provider)
        say = _nothing if arguments.json else _paragraph
        say(machine)
        tell("preparing the base, adapters and bundles")
        with prepared(arguments.model, arguments.adapters, arguments.bottleneck) as subject:
            for part in parts:
                tell(part.words.partition("\n")[0])
                for table in part.measure(subject, settings):
                    say(table.markdown())
                    tables.append(table)
    if arguments.json:
        print(json.dumps({"machine": machine, "tables": [table.document() for table in tables]}, indent=2))
    return machine, tables


def _paragraph(text: str) -> None:
    print(f"{text}\n", flush=True)


def _nothing(_: str) -> None:
    """Says nothing."""


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Parse the options.

    Raises:
        UsageError: a value is not a number above 0, or ONNX Runtime lacks the provider.
    """
    given = {name: getattr(arguments, name, option.get("default")) for name, option in OPTIONS.items()}
    _check_provider(given["provider"])
    for name in ("bottleneck", "adapters", "threads", "rounds", "tenants", "repeats"):
        _positive(given[name], name)
    lists = {name: _numbers(given[name], name) for name in ("lengths", "counts", "sessions", "callers")}
    shapes = [_shape(text) for text in given["shapes"].split(",")]
    plain = {name: given[name] for name in ("provider", "threads", "rounds", "seconds", "tenants", "repeats")}
    return Settings(**plain, **lists, shapes=shapes)


def tell(words: str) -> None:
    """Print the next step to stderr."""
    print(f"• {words}", file=sys.stderr, flush=True)


@contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except AdapterExportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _check_provider(provider: str) -> None:
    """Before the work begins; a provider that is there and does not start is an error of its first session."""
    available = ort.get_available_providers()
    if f"{provider.upper()}ExecutionProvider" not in available:
        raise UsageError(
            f"`{provider}` cannot be measured here: this build of ONNX Runtime does not have it",
            found=f"onnxruntime {ort.__version__} with {', '.join(available)}",
            fix="install `onnxruntime-gpu` on a machine with a GPU",
        )


def _shape(text: str) -> tuple[int, int]:
    batch, _, tokens = text.partition("x")
    return _positive(batch, "shapes"), _positive(tokens, "shapes")


def _numbers(text: str, name: str) -> list[int]:
    return [_positive(part, name) for part in text.split(",")]


def _positive(value: str | int, name: str) -> int:
    if not str(value).strip().isdecimal() or int(value) < 1:
        raise UsageError("an option is not a number above 0", where=f"`--{name}`", found=f"`{value}`")
    return int(value)
