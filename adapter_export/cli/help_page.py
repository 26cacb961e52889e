"""Help pages of commands, with options in sections and a maximum length."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import click

LONGEST_PAGE = 60
"""Maximum lines of a help page on a terminal with at least 80 columns."""


def examples(*lines: str) -> str:
    """Return the examples for the end of a help page, one per line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class HelpPage(click.Command):
    """A command whose help page groups options in sections and has at most `LONGEST_PAGE` lines.

    If they do not fit, the page explains the common options and names the others, and `--help SECTION` explains a
    section, as in curl.

    Args:
        sections: parameter names by section; parameters without a section are always on the page.
        common: parameters of sections that are on the page, too.
        moved: command lines to write instead, by the flag of an option that the command no longer has.
    """

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Sequence[str]],
        common: Collection[str] = (),
        moved: Mapping[str, str],
        **rest: Any,
    ) -> None:
        super().__init__(*args, **rest)
        self._moved = moved
        by_name = {str(param.name): param for param in self.params}
        named = {title: [by_name[name] for name in names if name in by_name] for title, names in sections.items()}
        self.sections = {title: params for title, params in named.items() if params}
        self._sectioned = {param.name for params in self.sections.values() for param in params}
        self._common = common
        self._help: click.Option | None = None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line; name the command that has an unknown option now."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            instead = self._moved.get(error.option_name)
            if instead is None:
                raise
            raise click.UsageError(f"`{ctx.info_name}` has no `{error.option_name}`; run {instead}.", ctx) from error

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return `--help` with an optional section."""
        if not self.sections:
            return super().get_help_option(ctx)
        if self._help is None:
            self._help = click.Option(
                ["help_section", *self.get_help_option_names(ctx)],
                is_flag=False,
                flag_value="",
                metavar="[SECTION]",
                expose_value=False,
                is_eager=True,
                help="Show this page, or explain the options of a section.",
                callback=self._show_help,
                shell_complete=lambda *arguments: [title for title in self.sections if title.startswith(arguments[2])],
            )
        return self._help

    def _show_help(self, ctx: click.Context, _: click.Parameter, section: str | None) -> None:
        if section is None or ctx.resilient_parsing:
            return
        formatter = ctx.make_formatter()
        if section in self.sections:
            self.format_usage(ctx, formatter)
            _write_options(ctx, formatter, section, self.sections[section])
        else:
            self.format_help(ctx, formatter)
        click.echo(formatter.getvalue().rstrip("\n"), color=ctx.color)
        ctx.exit()

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the page with all options explained, or with as many common ones as fit."""
        whole, rare = self._sectioned, self._sectioned.difference(self._common)
        brief = [(True, hidden, most) for hidden in (rare, whole) for most in (None, 1)] if self.sections else []
        for named, hidden, most in [(False, whole, None), *brief]:
            page = ctx.make_formatter()
            self.format_usage(ctx, page)
            self.format_help_text(ctx, page)
            _write_options(ctx, page, "options", [param for param in self.get_params(ctx) if param.name not in hidden])
            if named:
                indent, names = max(map(len, self.sections)) + 2, dict[str, str]()
                for title, params in self.sections.items():
                    flags = " ".join(flag_of(param) for param in params if param.name in hidden)
                    room = page.width - indent - 4
                    lines = textwrap.wrap(flags, room, break_on_hyphens=False, max_lines=most, placeholder=" …")
                    names[title] = "\n".join(["\b", *lines])
                with page.section(f"More, explained by `{ctx.command_path} --help SECTION`"):
                    page.write_dl([*names.items()])
            else:
                for title, params in self.sections.items():
                    _write_options(ctx, page, title, params)
            self.format_epilog(ctx, page)
            if page.getvalue().count("\n") <= LONGEST_PAGE:
                break
        formatter.write(page.getvalue())


def _write_options(
    ctx: click.Context, formatter: click.HelpFormatter, title: str, params: Sequence[click.Parameter]
) -> None:
    records = [param.get_help_record(ctx) for param in params if isinstance(param, click.Option)]
    with formatter.section(title.capitalize()):
        formatter.write_dl([record for record in records if record is not None])


def flag_of(param: click.Parameter) -> str:
    """Return the longest flag of an option."""
    return max(param.opts, key=len)
