"""Exceptions of this package.

::

    AdapterExportError                    exit code 5
    ├── UsageError                        exit code 2: invalid call
    │   └── MissingExtraError             an optional dependency is not installed
    ├── InputError                        exit code 3: invalid input
    │   ├── GraphError                    malformed adapter graph
    │   │   └── NotNeutralError           graph without neutral parameters
    │   ├── FileError                     file cannot be read or written
    │   │   ├── OutputExistsError
    │   │   ├── WriteError
    │   │   └── BusyError
    │   ├── FormatError                   file violates its format
    │   │   ├── VersionError
    │   │   ├── HashError
    │   │   ├── NoArtifactError           neither bundle nor adapter
    │   │   └── TensorError
    │   ├── SignatureError                missing or invalid signature
    │   ├── RemoteError                   request rejected by a hub or registry
    │   │   ├── UnreachableError          exit code 7: no response, or no network
    │   │   ├── NotFoundError             exit code 8: no such repository, tag or revision
    │   │   └── DeniedError               exit code 9: insufficient credentials
    │   ├── BaseModelError                unusable base model
    │   │   ├── UnsafeArchiveError
    │   │   │   └── UnknownFieldError
    │   │   ├── NoSitesError
    │   │   └── RotaryEmbeddingError      frequencies that change with the length of the text
    │   ├── AdapterError                  adapter does not fit
    │   │   ├── BaseMismatchError
    │   │   └── OtherModulesError         modules of an imported adapter are missing in the base
    │   ├── DataError                     unusable training data
    │   ├── TrainingError                 training cannot start or continue
    │   └── RequestError                  inputs do not fit the session
    ├── ParityError                       exit code 1: exported graph differs from the reference
    ├── MissedGateError                   exit code 1: adapter scores below a gate
    ├── TrainingRowsError                 exit code 6: gate on rows used for training
    ├── MistakeError                      exit code 1: adapter fails a lint check
    └── NothingComparedError              exit code 4: nothing was compared

A message states the problem, its location, the value found, the value expected and a fix. Code that raises passes these
five facts; this module formats them, so that all messages read the same.

Texts that name arguments are `Words` (`words.py`): `str(error)` shows `force=True`, `error.sentence("shell")` shows
`--force`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import ClassVar

from adapter_export.words import Face, Words, argument, joined, length_of, shortened, visible

MOST_CHARACTERS = 2000
"""Maximum length of a message, which may quote a whole file."""

UPGRADE = "run `pip install --upgrade adapter-export`, or update your checkout"
"""Fix for a file written by a newer release."""


FACTS = ("what", "where", "found", "expected", "fix")
"""Attributes of an error, in the order of its message."""

_GLUE = 40
"""Maximum characters of a message besides its facts."""


class AdapterExportError(Exception):
    """Base class of all errors of this package.

    Args:
        what: the problem, a short clause without a period.
        where: the file, and the location in it.
        found: the value found.
        expected: the value expected.
        fix: the next step for the user, an imperative clause.

    Attributes contain the facts in Python's wording; `sentence` and `facts` return either wording.
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
        self.what = Words(what)
        self.where = _fact(where)
        self.found = _fact(found)
        self.expected = _fact(expected)
        self.fix = _fact(fix)
        super().__init__(self.sentence())

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the error by its facts, so that it keeps its class in another process."""
        return again, (type(self), {name: getattr(self, name) for name in FACTS})

    @property
    def message(self) -> Words:
        """The message, for texts that quote it."""
        known = {name: _unfinished(value) for name, value in self._known().items()}
        facts = [known["where"] + ": " + known["what"] if "where" in known else known["what"]]
        facts += [f"{name} " + known[name] for name in ("found", "expected") if name in known]
        sentence = joined(facts, "; ") + "."
        if "fix" not in known:
            return sentence
        fix = known["fix"].capitalized()
        return sentence + " " + fix + ("" if fix.endswith(("?", "?`")) else ".")

    def problem(self, separator: str = ": ") -> Words:
        """Return what is wrong and the value found, for texts that quote them."""
        return joined(filter(None, (self.what, self.found)), separator)

    def sentence(self, face: Face = "python") -> str:
        """Return the message in the wording of one face."""
        return self.message.sentence(face)

    def facts(self, face: Face = "python") -> dict[str, str]:
        """Return the class of the error and its known facts."""
        told = {name: value.sentence(face) for name, value in self._known().items()}
        return {"error": type(self).__name__, **told}

    def _known(self) -> dict[str, Words]:
        """Return the known facts; the longest are truncated to fit into one message."""
        known = {name: value for name in FACTS if (value := getattr(self, name)) is not None}
        lengths = {name: length_of(value) for name, value in known.items()}
        room, told = MOST_CHARACTERS - _GLUE, dict(known)
        for left, name in enumerate(sorted(known, key=lambda name: lengths[name]), -len(known)):
            most = room // -left
            told[name] = shortened(visible(shortened(known[name], most)), most)
            room -= length_of(told[name])
        return told


def _unfinished(text: Words) -> Words:
    """Return a text without the period of a sentence at its end, since it becomes a part of one."""
    return text.rstrip(".") if text.endswith(".") and text[-2:-1].isalpha() else text


def _fact(fact: object | None) -> Words | None:
    if isinstance(fact, PurePath) and fact.parts[:1] in (("hf:",), ("oci:",)):
        fact = fact.as_posix().replace(":/", "://", 1)  # `Path` collapses the slashes of `hf://owner/name`
    return None if fact is None else Words(fact if isinstance(fact, str) else str(fact))


def again(kind: type[AdapterExportError], facts: dict[str, str | None]) -> AdapterExportError:
    """Rebuild an error from the facts of another process."""
    error = kind.__new__(kind)
    AdapterExportError.__init__(error, facts.pop("what") or "", **facts)  # subclasses may take other arguments
    return error


@contextmanager
def within(place: object) -> Iterator[None]:
    """Prefix the `where` of errors raised in the block with `place`, such as a file."""
    try:
        yield
    except AdapterExportError as error:
        outer = place if isinstance(place, Words) else Words(str(place))
        error.where = outer if error.where is None else outer + ", " + error.where
        error.args = (error.sentence(),)
        raise


@contextmanager
def or_else(alternative: str) -> Iterator[None]:
    """Add an alternative, an imperative clause, to the `fix` of errors about the base model raised in the block."""
    try:
        yield
    except BaseModelError as error:
        if not error.has_alternative:
            raise
        error.fix = Words(alternative) if error.fix is None else error.fix + "; or " + alternative
        error.args = (error.sentence(),)
        raise


@contextmanager
def moved(copy: object, original: object) -> Iterator[None]:
    """Replace paths of `copy` by those of `original` in errors raised in the block."""
    try:
        yield
    except AdapterExportError as error:
        for name in ("where", "found"):
            fact: Words | None = getattr(error, name)
            if fact is not None:
                setattr(error, name, fact.edited(lambda text: text.replace(str(copy), str(original))))
        error.args = (error.sentence(),)
        raise


class UsageError(AdapterExportError):
    """Invalid call: an option, a combination of options, or an argument."""

    exit_code = 2


class MissingExtraError(UsageError):
    """A feature was used whose optional dependency is not installed."""

    def __init__(self, library: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"`{library}` is not installed, and " + needed_for + " needs it",
            fix=f"run `pip install 'adapter-export[{extra}]'`, or `pip install '.[{extra}]'` in a checkout",
        )


class InputError(AdapterExportError):
    """Invalid argument, file or data."""

    exit_code = 3


class GraphError(InputError):
    """Malformed adapter graph."""


class NotNeutralError(GraphError):
    """An adapter graph without parameters that return `h` unchanged: it cannot share an exported graph."""


class FileError(InputError):
    """A file that cannot be read or written."""


class OutputExistsError(FileError):
    """The output path exists, and is not overwritten."""

    def __init__(self, path: object) -> None:
        fix = "choose another name, or pass " + argument("force", True) + " to replace it"
        super().__init__("already exists", where=path, fix=fix)


class WriteError(FileError):
    """Writing failed. An existing output is unchanged, and no partial file remains."""

    def __init__(self, path: object, reason: object) -> None:
        super().__init__(
            "could not be written (" + (reason if isinstance(reason, str) else str(reason)) + ")",
            where=path,
            fix="free some space or choose another path, then run again",
        )


class BusyError(FileError):
    """Another process is writing to the output path."""

    def __init__(self, path: object, owner: str) -> None:
        super().__init__(
            "is being written by another process",
            where=path,
            found=owner or None,
            fix="wait until it has finished, then run again",
        )


class AbandonedFileWarning(UserWarning):
    """A partial file of a killed process was removed."""


class FormatError(InputError):
    """A file that violates its format."""


class VersionError(FormatError):
    """A format version that this release does not support."""


class HashError(FormatError):
    """A file that does not match its recorded SHA-256."""

    def __init__(
        self,
        path: object,
        what: str = "has been changed or damaged since it was written",
        *,
        found: str,
        expected: str,
        fix: str = "get the file from its source again",
    ) -> None:
        super().__init__(what, where=path, found=f"sha256 {found[:12]}…", expected=f"sha256 {expected[:12]}…", fix=fix)


class NoArtifactError(FormatError):
    """A folder or a repository that is neither a bundle nor an adapter."""


class TensorError(FormatError):
    """Missing, unexpected or non-finite tensors, or tensors of a wrong shape or type."""


class SignatureError(InputError):
    """A missing or invalid signature, or a key that cannot sign."""


class RemoteError(InputError):
    """A hub or registry rejected a request."""


class UnreachableError(RemoteError):
    """A hub or registry does not respond; a retry may succeed."""

    exit_code = 7


class NotFoundError(RemoteError):
    """The repository, tag or revision does not exist."""

    exit_code = 8


class DeniedError(RemoteError):
    """A hub or registry denies the request for these credentials."""

    exit_code = 9


class BaseModelError(InputError):
    """A base model that cannot be used."""

    has_alternative: ClassVar[bool] = True
    """True if another way to open the model may help, which `or_else` adds."""


class UnsafeArchiveError(BaseModelError):
    """An archive that could execute code when loaded."""


class UnknownFieldError(UnsafeArchiveError):
    """An archive of a newer torch, with text in a field that this version cannot check."""


class NoSitesError(BaseModelError):
    """A base without adapter sites."""


class RotaryEmbeddingError(BaseModelError):
    """A base with rotary frequencies that change with the length of the text."""

    has_alternative: ClassVar[bool] = False


class AdapterError(InputError):
    """An adapter that does not fit the base."""


class BaseMismatchError(AdapterError):
    """An adapter trained on another base."""

    def __init__(self, adapter: str, *, found: str, expected: str, can_be_allowed: bool = True) -> None:
        allowed = ", or " + argument("allow_base_mismatch", True) + " if both are the same model"
        super().__init__(
            f"adapter `{adapter}` was trained on another base",
            found=f"base fingerprint {found}",
            expected=expected,
            fix="pass the base that it was trained on" + (allowed if can_be_allowed else ""),
        )


class OtherModulesError(AdapterError):
    """An imported adapter whose architecture or modules do not match the base."""


class DataError(InputError):
    """Training data that cannot be used."""


class TrainingError(InputError):
    """A training run that cannot start or continue."""


class RequestError(InputError):
    """An adapter or inputs that do not fit the session."""


class ParityError(AdapterExportError):
    """An exported graph whose results differ from the reference."""

    exit_code = 1

    def __init__(self, where: object, *, found: str, expected: str) -> None:
        super().__init__(
            "the results of the exported graph differ from the reference",
            where=where,
            found=found,
            expected=expected,
            fix="report this with the base and the adapter",
        )


class MissedGateError(AdapterExportError):
    """An adapter that scores below a gate, or below its training record."""

    exit_code = 1


class TrainingRowsError(AdapterExportError):
    """A gate on training rows, which does not measure generalization."""

    exit_code = 6


class MistakeError(AdapterExportError):
    """An adapter that fails a lint check."""

    exit_code = 1


class NothingComparedError(AdapterExportError):
    """A check that compared nothing, and so verified nothing."""

    exit_code = 4
