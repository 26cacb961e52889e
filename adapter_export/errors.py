"""Every error that this package raises on purpose.

::

    AdapterExportError                    exit code 5
    ├── UsageError                        exit code 2: the call itself is wrong
    │   └── MissingExtraError             a part that needs a package which is not installed
    ├── InputError                        exit code 3: what was handed in is wrong
    │   ├── GraphError                    an adapter graph that is not well formed
    │   │   └── NotNeutralError           a graph without neutral parameters
    │   ├── FileError                     a file that cannot be read or written
    │   │   ├── OutputExistsError
    │   │   ├── WriteError
    │   │   └── BusyError
    │   ├── FormatError                   a file whose contents break the format
    │   │   ├── VersionError
    │   │   ├── HashError
    │   │   ├── NoArtifactError           neither a bundle nor an adapter
    │   │   └── TensorError
    │   ├── SignatureError                a bundle that is not signed as it should be
    │   ├── RemoteError                   what a hub or a registry does not give or take
    │   │   ├── UnreachableError          exit code 7: it does not answer, or there is no network
    │   │   ├── NotFoundError             exit code 8: it has no such repository, tag or revision
    │   │   └── DeniedError               exit code 9: it wants other credentials
    │   ├── BaseModelError                a base model that cannot be used
    │   │   ├── UnsafeArchiveError
    │   │   │   └── UnknownFieldError
    │   │   └── NoSitesError
    │   ├── AdapterError                  an adapter that does not fit
    │   │   ├── BaseMismatchError
    │   │   └── OtherModulesError         one of another library whose modules the base does not have
    │   ├── DataError                     training data that cannot be used
    │   ├── TrainingError                 a training run that cannot go on
    │   └── RequestError                  a call of a session with inputs that do not fit
    ├── ParityError                       exit code 1: an exported graph that does not compute what it should
    ├── MissedGateError                   exit code 1: an adapter that does not do as well as it should
    ├── TrainingRowsError                 exit code 6: a gate on rows that the adapter was trained on
    ├── MistakeError                      exit code 1: an adapter with one of the classic mistakes
    └── NothingComparedError              exit code 4: a check that looked at nothing

A message says what is wrong, where, what was found, what was expected, and what to do next. Code that raises gives
those five facts; the sentence is put together here, so that every error of the package reads the same.

What is an argument to a Python caller is an option to a shell user. A message names it with `argument` or `command`,
which put both wordings into the text; `str(error)` has the one, `error.sentence("shell")` the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import ClassVar, Literal

Face = Literal["python", "shell"]
"""The reader of a message: a caller in Python, or a user of the command line."""

_PYTHON, _SHELL, _END = "\ue000", "\ue001", "\ue002"
"""Marks around the two wordings in a text: characters for private use, which no other text has."""

MOST_CHARACTERS = 2000
"""The longest message: what is quoted of a file may be the whole of it."""

_BOTH = re.compile(f"{_PYTHON}([^{_SHELL}]*){_SHELL}([^{_END}]*){_END}")


UPGRADE = "run `pip install --upgrade adapter-export`, or update your checkout"
"""The fix for a file of a newer release."""


def argument(name: str, value: object = None, *, option: str | None = None, words: str | None = None) -> str:
    """Name an argument in a message: `force=True` to a Python caller, `--force` to a shell user.

    Args:
        name: of the argument.
        value: what it is to be; none names the argument alone.
        option: the name of the option, where it is another one.
        words: what stands behind the option, where that is not the value.
    """
    given = repr(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
    if words is None and value is not None and value is not True:
        words = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    flag = f"--{(option or name).replace('_', '-')}"
    return _either(
        f"`{name}`" if value is None else f"`{name}={given}`", f"`{flag}`" if words is None else f"`{flag} {words}`"
    )


def command(call: str, line: str) -> str:
    """Name a call in a message, such as `capture(FOLDER, "model.pt")`, and the command line that does the same."""
    return _either(f"`{call}`", f"`adapter-export {line}`")


def _either(python: str, shell: str) -> str:
    return f"{_PYTHON}{python}{_SHELL}{shell}{_END}"


def quoted(names: Iterable[object]) -> str:
    """Return names as a message has them: `a`, `b`."""
    return ", ".join(f"`{name}`" for name in names)


def nearest(name: str, known: Iterable[str], alike: float = 0.6) -> str | None:
    """Return the known name most like an unknown one, in whatever case; `None` if none is that much alike, 0 to 1."""
    from difflib import get_close_matches  # noqa: PLC0415 - for wrong names only

    by_case = {one.casefold(): one for one in known}
    near = get_close_matches(name.casefold(), by_case, 1, alike)
    return by_case[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return what to do about an unknown name: the known name most like it, if one is, before another way out.

    Args:
        name: the unknown name.
        known: the names that there are.
        otherwise: an imperative clause.
    """
    near = nearest(name, known)
    return otherwise if near is None else f"did you mean `{near}`? If not, {otherwise}"


def worded(text: str, face: Face = "python") -> str:
    """The text of a message in the words of one face."""
    return _BOTH.sub(r"\1" if face == "python" else r"\2", both(text))


def both(text: str) -> str:
    """Return a text with both wordings, to be put into another message; a `Note` shows Python's alone."""
    return text.wordings if isinstance(text, Note) else text


_JOINERS = "\u200c\u200d"
"""Signs without a width that letters and emoji need."""


def visible(text: str) -> str:
    """Return a text of others as it may be shown: controls of terminals and of the direction of text as escapes.

    Such a sign could show something else than what is there. Ends of lines and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(
        one
        if one.isprintable() or one in f"\n\t{_JOINERS}{_PYTHON}{_SHELL}{_END}"
        else one.encode("unicode_escape").decode("ascii")
        for one in text
    )


FACTS = ("what", "where", "found", "expected", "fix")
"""The attributes of an error with what is known of it."""

_GLUE = 40
"""The most characters of a message that are not those of its facts."""


def _cut(text: str, most: int) -> str:
    """The beginning of a text that has more characters than that, and how many it has."""
    if len(text) <= most:
        return text
    said = f"… ({len(text):,} characters)"
    start = text[: most - len(said)]
    if start.rfind(_PYTHON) > start.rfind(_END):  # in the midst of two wordings
        start = start[: start.rfind(_PYTHON)]
    return start + said


class Note(str):
    """A text for a caller, in Python's words; `sentence` has it in those of either face.

    Args:
        text: with the words of both.

    Attributes:
        wordings: the text as it was given.
    """

    wordings: str

    def __new__(cls, text: str) -> Note:
        """Keep both wordings beside Python's."""
        note = super().__new__(cls, worded(text))
        note.wordings = both(text)
        return note

    def sentence(self, face: Face = "python") -> str:
        """The note in the words of one face."""
        return worded(self, face)


class AdapterExportError(Exception):
    """The root of the tree.

    Args:
        what: what is wrong, a short clause without a full stop.
        where: the file, and the place in it.
        found: what was there.
        expected: what should have been there.
        fix: what the user does next, an imperative clause.

    The attributes have the facts in Python's words; `sentence` and `facts` have them in those of either face.
    """

    exit_code: ClassVar[int] = 5

    def __init__(
        self,
        what: str,
        *,
        where: object | None = None,
        found: object | None = None,
        expected: object | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = Note(what)
        self.where = _note(where)
        self.found = _note(found)
        self.expected = _note(expected)
        self.fix = _note(fix)
        super().__init__(self.sentence())

    def __reduce__(self) -> tuple[object, ...]:
        """Let an error pass from one process to another as what it is."""
        return again, (type(self), {name: getattr(self, name) for name in FACTS})

    @property
    def message(self) -> str:
        """The five facts in one text that has the words of both faces; for texts that quote it."""
        known = self._known()
        facts = [f"{known['where']}: {known['what']}" if "where" in known else known["what"]]
        facts += [f"{name} {known[name]}" for name in ("found", "expected") if name in known]
        sentence = "; ".join(facts) + "."
        if "fix" in known:
            sentence = f"{sentence} {known['fix'][0].upper()}{known['fix'][1:]}."
        return sentence

    def sentence(self, face: Face = "python") -> str:
        """The five facts in the words of one face."""
        return worded(self.message, face)

    def facts(self, face: Face = "python") -> dict[str, str]:
        """The error as data: its class and those of the five facts that are known."""
        told = {name: worded(value, face) for name, value in self._known().items()}
        return {"error": type(self).__name__, **told}

    def _known(self) -> dict[str, str]:
        """The facts that are known; where all are longer than a message may be, the longest of them are cut."""
        known = {name: both(value) for name in FACTS if (value := getattr(self, name)) is not None}
        room, told = MOST_CHARACTERS - _GLUE, dict(known)
        for left, name in enumerate(sorted(known, key=lambda name: len(known[name])), -len(known)):
            most = room // -left
            told[name] = _cut(visible(_cut(known[name], most)), most)
            room -= len(told[name])
        return told


def _note(fact: object | None) -> Note | None:
    if isinstance(fact, PurePath) and fact.parts[:1] in (("hf:",), ("oci:",)):
        fact = fact.as_posix().replace(":/", "://", 1)  # a path of `hf://owner/name` has lost a slash
    return None if fact is None else Note(fact if isinstance(fact, str) else str(fact))


def again(kind: type[AdapterExportError], facts: dict[str, str | None]) -> AdapterExportError:
    """Return an error of another process, of the five facts that it had there."""
    error = kind.__new__(kind)
    AdapterExportError.__init__(error, facts.pop("what") or "", **facts)  # a kind may take other arguments
    return error


@contextmanager
def within(place: object) -> Iterator[None]:
    """Errors of this package that the block raises name `place`, such as a file, before their own `where`."""
    try:
        yield
    except AdapterExportError as error:
        error.where = Note(str(place) if error.where is None else f"{place}, {both(error.where)}")
        error.args = (error.sentence(),)
        raise


@contextmanager
def moved(copy: object, original: object) -> Iterator[None]:
    """Errors of this package that the block raises name files of `original`, which the caller has, and not the copy."""
    try:
        yield
    except AdapterExportError as error:
        for name in ("where", "found"):
            said = getattr(error, name)
            setattr(error, name, None if said is None else Note(both(said).replace(str(copy), str(original))))
        error.args = (error.sentence(),)
        raise


class UsageError(AdapterExportError):
    """The call itself is wrong: an option, a combination of options, an argument."""

    exit_code = 2


class MissingExtraError(UsageError):
    """A part of the package was called whose libraries are not installed."""

    def __init__(self, library: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"`{library}` is not installed, and {needed_for} needs it",
            fix=f"run `pip install 'adapter-export[{extra}]'`, or `pip install '.[{extra}]'` in a checkout",
        )


class InputError(AdapterExportError):
    """An argument, a file or data from the caller is invalid."""

    exit_code = 3


class GraphError(InputError):
    """An adapter graph that is not well formed."""


class NotNeutralError(GraphError):
    """A graph for which no parameters make the result equal `h`, so that it cannot share an exported graph."""


class FileError(InputError):
    """A file that cannot be read or written."""


class OutputExistsError(FileError):
    """The place to write to is taken; what is there is left alone."""

    def __init__(self, path: object) -> None:
        fix = f"choose another name, or give {argument('force', True)} to replace it"
        super().__init__("already exists", where=path, fix=fix)


class WriteError(FileError):
    """Writing failed midway; what was there before is still there, and nothing half-written stays behind."""

    def __init__(self, path: object, reason: object) -> None:
        super().__init__(
            f"could not be written ({reason})",
            where=path,
            fix="free some space or choose another place, then run again",
        )


class BusyError(FileError):
    """A place where another process is writing."""

    def __init__(self, path: object, owner: str) -> None:
        super().__init__(
            "is being written by another process",
            where=path,
            found=owner or None,
            fix="wait until it has ended, then run again",
        )


class AbandonedFileWarning(UserWarning):
    """A partial file of a killed process was removed."""


class FormatError(InputError):
    """A file whose contents break the format."""


class VersionError(FormatError):
    """A file of a format version that this release does not read."""


class HashError(FormatError):
    """A file whose bytes are not those that its record names."""

    def __init__(
        self,
        path: object,
        what: str = "has been changed or damaged since it was written",
        *,
        found: str,
        expected: str,
        fix: str = "take the file from its source again",
    ) -> None:
        super().__init__(what, where=path, found=f"sha256 {found[:12]}…", expected=f"sha256 {expected[:12]}…", fix=fix)


class NoArtifactError(FormatError):
    """A folder or a repository that is neither a bundle nor an adapter."""


class TensorError(FormatError):
    """Tensors that are missing, left over, of a wrong shape or type, or not finite."""


class SignatureError(InputError):
    """A bundle that is not signed as it should be, or a key that cannot sign."""


class RemoteError(InputError):
    """A hub or a registry rejected a request."""


class UnreachableError(RemoteError):
    """A hub or a registry that does not answer, or not now; trying again may help."""

    exit_code = 7


class NotFoundError(RemoteError):
    """A repository, tag or revision that is not there."""

    exit_code = 8


class DeniedError(RemoteError):
    """A hub or a registry that does not let these credentials, or none, do what was asked."""

    exit_code = 9


class BaseModelError(InputError):
    """A base model that cannot be used."""


class UnsafeArchiveError(BaseModelError):
    """An archive that could run code when it is loaded."""


class UnknownFieldError(UnsafeArchiveError):
    """An archive of a newer torch, with text in a field that this version cannot screen."""


class NoSitesError(BaseModelError):
    """A base in which no place for an adapter was found."""


class AdapterError(InputError):
    """An adapter that does not fit."""


class BaseMismatchError(AdapterError):
    """An adapter that was trained on another base."""

    def __init__(self, adapter: str, *, found: str, expected: str, can_be_allowed: bool = True) -> None:
        allowed = f", or {argument('allow_base_mismatch', True)} if you know that both are the same"
        super().__init__(
            f"adapter `{adapter}` was trained on another base",
            found=f"base fingerprint {found}",
            expected=expected,
            fix=f"give the base that it was trained on{allowed if can_be_allowed else ''}",
        )


class OtherModulesError(AdapterError):
    """An adapter of another library whose architecture or modules are not those of the base."""


class DataError(InputError):
    """Training data that cannot be used."""


class TrainingError(InputError):
    """A training run that cannot start or cannot go on."""


class RequestError(InputError):
    """A call of a session with an adapter or inputs that do not fit."""


class ParityError(AdapterExportError):
    """An exported graph that does not compute what the reference computes."""

    exit_code = 1

    def __init__(self, where: object, *, found: str, expected: str) -> None:
        super().__init__(
            "the exported graph does not compute what the reference computes",
            where=where,
            found=found,
            expected=expected,
            fix="report this with the base and the adapter",
        )


class MissedGateError(AdapterExportError):
    """An adapter that does not do as well as was asked, or as the record of its training says."""

    exit_code = 1


class TrainingRowsError(AdapterExportError):
    """A gate on rows that the adapter was trained on, which shows nothing about new ones."""

    exit_code = 6


class MistakeError(AdapterExportError):
    """An adapter in which one of the classic mistakes was found."""

    exit_code = 1


class NothingComparedError(AdapterExportError):
    """A check that looked at nothing, and therefore proved nothing."""

    exit_code = 4
