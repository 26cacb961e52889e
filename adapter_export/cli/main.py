"""`adapter-export`: the group of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from adapter_export.errors import AbandonedFileWarning, AdapterExportError, FileError, InputError
from adapter_export.version import __version__

_BUG, _INTERRUPTED = 5, 130


class Entry(NamedTuple):
    """A command that is imported when it is called: `.module:attribute`, seen from `cli`, and its line in the list."""

    target: str
    help: str


COMMANDS: Mapping[str, Entry] = {
    "capture": Entry(".models.capture:capture", "Make a model archive from a Hugging Face folder."),
    "sites": Entry(".models.sites:sites", "Show where adapters can act in a model."),
    "plan": Entry(".training.practice:plan", "Say what adapters would cost in a model, before training."),
    "train": Entry(".training.train:train", "Train an adapter on a table of labelled texts."),
    "sweep": Entry(".training.practice:sweep", "Train adapters of many settings, and compare them."),
    "lint": Entry(".training.practice:lint", "Look for the classic mistakes in an adapter."),
    "drop": Entry(".training.practice:drop", "Say what an adapter loses without its lowest layers."),
    "distil": Entry(".training.train:distil", "Let a smaller model learn from one with an adapter."),
    "pack": Entry(".adapters.pack:pack", "Make an adapter from plain tensors of any framework."),
    "import": Entry(".adapters.import_:import_", "Make an adapter of one that another library trained."),
    "compose": Entry(".adapters.compose:compose", "Make one adapter of several: stacked, averaged, fused."),
    "merge": Entry(".adapters.merge:merge", "Write a model with an adapter inside its weights."),
    "build": Entry(".bundles.build:build", "Export a model and its adapters as one bundle."),
    "add": Entry(".bundles.add:add", "Add adapters to a bundle, without a new export."),
    "remove": Entry(".bundles.add:remove", "Remove adapters from a bundle."),
    "check": Entry(".bundles.check:check", "Prove that a bundle computes what it should."),
    "verify": Entry(".bundles.check:verify", "Show that a bundle is whole and computes right here."),
    "sign": Entry(".bundles.sign:sign", "Sign a bundle: say who made it."),
    "evaluate": Entry(".bundles.evaluate:evaluate", "Measure an adapter of a bundle on labelled texts."),
    "compare": Entry(".bundles.evaluate:compare", "Compare adapters, bundles and models on the same texts."),
    "run": Entry(".bundles.run:run", "Run a bundle on texts, images, audio or arrays."),
    "inspect": Entry(".bundles.inspect:inspect", "Show what is in a bundle, an adapter or a model."),
    "serve": Entry(".serving.serve:serve", "Serve bundles by HTTP, an adapter for each request."),
    "bench": Entry(".serving.bench:bench", "Measure how to serve a bundle on this machine."),
    "ship": Entry(".serving.ship:ship", "Write what Triton, KServe, Ray or Docker needs to serve a bundle."),
    "push": Entry(".serving.hub:push", "Send a bundle or an adapter to a hub or a registry."),
    "pull": Entry(".serving.hub:pull", "Take a bundle or an adapter from a hub or a registry."),
}


SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Models": ("capture", "sites", "distil"),
    "Adapters": ("plan", "train", "sweep", "lint", "drop", "pack", "import", "compose", "merge"),
    "Bundles": ("build", "add", "remove", "check", "verify", "sign", "evaluate", "compare", "run", "inspect"),
    "Serving": ("serve", "bench", "ship", "push", "pull"),
}
"""The commands as the help lists them."""


class LazyGroup(click.Group):
    """A group that imports a command when it is called and lists its commands, in `table`, without importing any.

    Every error ends here: those of this package with their own exit code, failing disks and memory with 3, an
    interrupt with 130, anything else, which is a bug of ours, with 5.
    """

    def __init__(self, *args: Any, table: Mapping[str, Entry], **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order in which a user meets them."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, imported now."""
        entry = self._table.get(cmd_name)
        if entry is None:
            return None
        module, attribute = entry.target.split(":")
        command = getattr(importlib.import_module(module, __package__), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names; the error for an unknown one names a near one."""
        if args and args[0] not in self._table and not args[0].startswith("-"):
            near = get_close_matches(args[0], self._table, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(self._table)}."
            ctx.fail(f"no command `{args[0]}`; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table."""
        sectioned = {name for names in SECTIONS.values() for name in names}
        rest = [name for name in self._table if name not in sectioned]
        for section, names in {**SECTIONS, "Commands": rest}.items():
            own = [(name, self._table[name].help) for name in names if name in self._table]
            if own:
                with formatter.section(section):
                    formatter.write_dl(own)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands that begin so, without importing any."""
        names = [
            CompletionItem(name, help=entry.help) for name, entry in self._table.items() if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run, and say errors as JSON too where `--json` is among the arguments."""
        arguments = list(sys.argv[1:] if args is None else args)
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is loaded: threads that spin starve others
        extra["obj"] = _Call(json="--json" in arguments, debug="--debug" in arguments)
        return super().main(arguments, *rest, **extra)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the options of the group; a group inside another leaves its errors to that one."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.ClickException as error:
            if parent is None:
                _report_call(error, extra.get("obj") or _Call())
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a group inside another leaves its errors to that one."""
        if ctx.parent is not None:
            return super().invoke(ctx)
        call = ctx.ensure_object(_Call)
        try:
            with warnings.catch_warnings():
                if not call.debug:
                    warnings.simplefilter("ignore")
                    warnings.simplefilter("always", AbandonedFileWarning)
                    warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except click.ClickException as error:
            _report_call(error, call)
            raise
        except KeyboardInterrupt:
            if call.json:
                _say_json({"error": "Interrupted", "what": "interrupted"}, _INTERRUPTED)
            click.echo("\ninterrupted.", err=True)
            ctx.exit(_INTERRUPTED)
        except Exception as error:  # noqa: BLE001 - the outermost place; whatever arrives becomes a message
            ctx.exit(_report(error, call))


@dataclass(frozen=True)
class _Call:
    """How the user wants to hear of errors."""

    json: bool = False
    debug: bool = False


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    from adapter_export.cli.output import warn

    warn(str(message))


def _report_call(error: click.ClickException, call: _Call) -> None:
    """Say a wrong call as JSON; click says it in words."""
    if call.json:
        _say_json({"error": "UsageError", "what": error.format_message()}, error.exit_code)


def _report(error: Exception, call: _Call) -> int:
    """Say an error and return the exit code."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        raise error  # the reader of our output left; click ends quietly
    if call.debug:
        traceback.print_exception(error)
    known = _as_known(error)
    if known is None:
        what, code, advice = f"{type(error).__name__}: {error}", _BUG, ""
        facts = {"error": "InternalError", "what": what}
        if not call.debug:
            with tempfile.NamedTemporaryFile("w", prefix="adapter-export-", suffix=".txt", delete=False) as file:
                file.write(f"adapter-export {__version__}\n{' '.join(sys.argv)}\n\n")
                traceback.print_exception(error, file=file)
            advice = f" Please report it with `{file.name}`."
        message = f"{what}. This is a bug in adapter-export.{advice}"
    else:
        facts, message, code = known.facts("shell"), known.sentence("shell"), known.exit_code
    if call.json:
        _say_json(facts, code)
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    return code


def _as_known(error: Exception) -> AdapterExportError | None:
    """Return the error as one of ours: failing disks and memory are no bugs."""
    if isinstance(error, AdapterExportError):
        return error
    if isinstance(error, MemoryError):
        return InputError("there is not enough memory", fix="use a smaller model or batch, or a larger machine")
    if isinstance(error, OSError):
        return FileError(
            f"could not be read or written ({error.strerror or error})",
            where=error.filename or "a file",
            fix="check the path, its permissions and the free space, then run again",
        )
    return None


def _say_json(facts: Mapping[str, str], exit_code: int) -> None:
    from adapter_export.cli.output import emit_json

    emit_json({**facts, "exit_code": exit_code})


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nFrom a model to a service:\n"
    "  adapter-export capture HF_FOLDER -o model.pt\n"
    "  adapter-export train model.pt --data train.tsv --kind houlsby --bottleneck 64 -o a\n"
    "  adapter-export build model.pt --adapters a,b -o bundle\n"
    "  adapter-export check bundle --against model.pt\n"
    "  adapter-export run bundle --adapter a --text 'How far is the moon?'\n"
    "\n\b\nExit codes: 0 done, 1 a comparison failed, 2 wrong call, 3 bad input, 4 nothing was compared,\n"
    "5 a bug, 130 interrupted. With `--json` every command writes one document to stdout, errors too.",
)
@click.version_option(__version__, prog_name="adapter-export", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and the warnings of libraries.")
def main(debug: bool) -> None:
    """Export a frozen model and its adapters to one ONNX graph with swappable adapter weights."""
