"""Command-line options, declared in the annotations of parameters: `Annotated[int, Option(…)]`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_origin, get_type_hints

from adapter_export.errors import UsageError
from adapter_export.words import argument, joined


@dataclass(frozen=True)
class Option:
    """A command-line option; type, default and usually the name come from the parameter.

    Attributes:
        help: the help text, without the default, which help pages read from the signature.
        metavar: the value in help pages, such as `FILE`. Default: by type. `metavar` and `choices` may be functions,
            for values from modules that import slowly.
        flags: other names, separated by spaces: a short `-o` is added to the parameter's name, a long `--json` replaces
            it.
        choices: the valid values. Default: those of a `Literal`.
        least: the minimum.
        commas: whether the value is a comma-separated list, such as `a,b`; other lists repeat the option.
        required: whether the option is required. Default: true if the parameter has no default.
        variable: the environment variable that sets the parameter, which then is not an option.
    """

    help: str = ""
    metavar: str | Callable[[], str] | None = None
    flags: str = ""
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    least: int | None = None
    commas: bool = False
    required: bool | None = None
    variable: str = ""


class Remote:
    """Annotation of a path that may also be a hub address, such as `hf://owner/name`."""


REMOTE = Remote()


class OptionsOf:
    """Options declared by classes, each an annotated field with its default.

    Annotates the keyword arguments of a call, `**options: Annotated[Any, OptionsOf(LoopSpec)]`; the command of the call
    gets these options.

    Args:
        specs: frozen dataclasses, or a `TypedDict`, whose options have no defaults; or a function that returns one, for
            modules that import slowly.
        without: options to exclude, or a function that returns them.
    """

    def __init__(
        self, *specs: type | Callable[[], type], without: Collection[str] | Callable[[], Collection[str]] = ()
    ) -> None:
        self._given, self._without = specs, without

    @property
    def _specs(self) -> tuple[type, ...]:
        return tuple(spec if isinstance(spec, type) else spec() for spec in self._given)

    def declared(self) -> Iterator[tuple[str, object, object]]:
        """Yield the name, the annotated type and the default of each option; `None` where there is no default."""
        without = self._without() if callable(self._without) else self._without
        for spec in self._specs:
            yield from ((name, *declaration) for name, declaration in _declared(spec).items() if name not in without)

    def defaults(self) -> dict[str, Any]:
        """Return the default of each option."""
        return {name: default for name, _, default in self.declared()}

    def split(self, call: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the passed options (not `None`) of each class.

        Raises:
            UsageError: an option is unknown.
        """
        known = self.defaults()
        unknown = [name for name in options if name not in known]
        if unknown:
            raise UsageError(f"`{call}` has no such argument", found=joined(map(argument, unknown)))
        chosen = {name: value for name, value in options.items() if value is not None}
        return [{name: value for name, value in chosen.items() if name in _declared(spec)} for spec in self._specs]


def changed(spec: object) -> dict[str, Any]:
    """Return the options of a dataclass whose values differ from their defaults."""
    options = {name: (getattr(spec, name), default) for name, (_, default) in _declared(type(spec)).items()}
    return {name: value for name, (value, default) in options.items() if value != default}


def _declared(spec: type) -> dict[str, tuple[object, object]]:
    """Return the annotated type and the default of each option that a class declares."""
    defaults = {entry.name: entry.default for entry in fields(spec)} if is_dataclass(spec) else {}
    hints = get_type_hints(spec, include_extras=True).items()
    options = {name: (hint, defaults.get(name)) for name, hint in hints if get_origin(hint) is Annotated}
    return {name: (hint, None if default is MISSING else default) for name, (hint, default) in options.items()}


TEXT = Option("Column of the texts; for images or audio, of the paths: `image` or `audio` by default.", "COLUMN")
PAIR = Option("Column of the second texts: contexts, choices, or the answers to prompts.", "COLUMN")
NEGATIVE = Option(
    "Column of texts that do not belong to `--text`, beside the positives in `--pair` (`embedding` and `ranking`). "
    "Repeatable.",
    "COLUMN",
)
LABEL = Option("Column of the labels; `label` by default. Pairs of an embedding have none.", "COLUMN")
START = Option("Column of the first character of each answer, counted from 0 (`span` only).", "COLUMN")
DIMENSIONS = Option("Truncate vectors to this width, one of `--widths` of `train` (`embedding` only).", "N", least=1)
GROUP = Option("Column of the group within which rows are ranked; defaults to the texts (`ranking` only).", "COLUMN")
LABELLED_DATA = Option(
    "Labelled texts: csv, tsv, jsonl or Parquet; or a folder of images or audio for each label.", "PATH", "--data"
)
DELIMITER = Option("Separator of the cells of a csv file, such as `;` or `tab`; detected by default.", "CHARACTER")
ENCODING = Option("Encoding of text files, such as `cp1252`; UTF-8 by default, and detected.", "NAME")
SKIP_INCOMPLETE = Option("Skip rows without text or label instead of failing.")

FormName = Literal["given", "auto"]

FormOption = Annotated[
    FormName, Option("The bundle as `given`, or `auto`: what `bench` found fastest on this machine, and saved.")
]
Force = Annotated[bool, Option("Replace an existing output.")]
SITE_MAP = Option(
    "Site map that overrides or completes the detected sites; `sites --write-site-map` writes one.", "FILE"
)
TRUST_PICKLE = Option("Load a model archive that could run code. Only for files you trust.")
VALIDATION = Option("Fraction of each class held out for validation; 0.1 without a validation file.", "FRACTION")
VALIDATION_DATA = Option("Validation file; excludes `--validation`.", "FILE")
TOKENIZER = Option("A `tokenizer.json`, or a folder with one; defaults to the model's tokenizer.", "PATH")
THREADS = Option("Processor threads; defaults to those of torch.", least=1)
