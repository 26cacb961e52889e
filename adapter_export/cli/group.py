"""Command groups, and the single place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import gc
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from adapter_export.errors import AbandonedFileWarning, AdapterExportError, FileError, InputError
from adapter_export.plugin import PluginWarning
from adapter_export.version import __version__
from adapter_export.words import nearest, visible

_BUG, _INTERRUPTED = 5, 130
"""Exit codes of a bug, and of Ctrl-C: 128 plus the number of the signal, as shells report it."""

_OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""Garbage-collector threshold: exports allocate millions of objects, few of them in cycles. Python's default is 700."""


@dataclass(frozen=True)
class Entry:
    """An entry in a list of commands.

    Attributes:
        help: the one-line description.
        make: makes the command when it runs or a shell completes its options.
        section: the heading that it is listed under.
    """

    help: str
    make: Callable[[], click.Command]
    section: str = "Commands"


class LazyGroup(click.Group):
    """A group that makes commands lazily, and lists the commands in `table` without making any.

    Every error ends here, with an exit code: this package's errors with their own, disk and memory errors with 3, an
    interrupt with 130, and anything else, which is a bug, with 5.
    """

    def __init__(self, *args: Any, table: Mapping[str, Entry], **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a user's workflow."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make and return the command."""
        entry = self.table.get(cmd_name)
        return None if entry is None else entry.make()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve the first argument to a command; suggest a similar name for an unknown one."""
        if args and args[0] not in self.table and not args[0].startswith("-"):
            near = nearest(args[0], self.table)
            hint = f"there are {', '.join(self.table)}." if near is None else f"did you mean `{near}`?"
            ctx.fail(f"no command `{args[0]}`; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        for section in dict.fromkeys(entry.section for entry in self.table.values()):
            with formatter.section(section):
                rows = [(name, entry.help) for name, entry in self.table.items() if entry.section == section]
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return completions for a command name."""
        names = [
            CompletionItem(name, help=entry.help) for name, entry in self.table.items() if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run the group; errors are also JSON documents if `--json` is among the arguments."""
        arguments = list(sys.argv[1:] if args is None else args)
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: spinning starves others
        extra["obj"] = _Call(json="--json" in arguments, debug="--debug" in arguments)
        return super().main(arguments, *rest, **extra)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the group's options; a nested group leaves errors to its parent."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.ClickException as error:
            if parent is None:
                _report_call(error, extra.get("obj") or _Call())
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a nested group leaves errors to its parent."""
        if ctx.parent is not None:
            return super().invoke(ctx)
        call = ctx.ensure_object(_Call)
        try:
            with warnings.catch_warnings():
                if not call.debug:
                    warnings.simplefilter("ignore")
                    for category in (AbandonedFileWarning, PluginWarning):
                        warnings.simplefilter("always", category)
                    warnings.showwarning = _show_warning
                _remove_abandoned()
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
        except Exception as error:  # noqa: BLE001 - the outermost handler turns any error into a message
            ctx.exit(_report(error, call))


@dataclass(frozen=True)
class _Call:
    """Group options that control how errors are shown."""

    json: bool = False
    debug: bool = False


def _remove_abandoned() -> None:
    """Remove what killed processes left, even if the command itself writes no files."""
    from adapter_export.safe_io.temporary import remove_abandoned

    remove_abandoned()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    from adapter_export.cli.terminal import warn

    warn(str(message))


def _report_call(error: click.ClickException, call: _Call) -> None:
    """Write a usage error as JSON; click prints it as text."""
    if call.json:
        _say_json({"error": "UsageError", "what": error.format_message()}, error.exit_code)


def _report(error: Exception, call: _Call) -> int:
    """Print an error and return its exit code."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        raise error  # the reader closed the pipe; click exits silently
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
    click.echo(f"{click.style('error:', fg='red', bold=True)} {visible(message)}", err=True)
    return code


def _as_known(error: Exception) -> AdapterExportError | None:
    """Convert disk and memory errors, which are not bugs, to this package's errors."""
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
    from adapter_export.cli.terminal import emit_json

    emit_json({**facts, "exit_code": exit_code})
