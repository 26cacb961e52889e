"""Bundles in MLflow: a pyfunc model whose adapter is a parameter of each call; needs the extra `mlflow`.

The model is the bundle's folder and the name of this module, so nothing is pickled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, Map, Object, Property

from adapter_export.decoding import Decoding
from adapter_export.errors import RequestError, UsageError
from adapter_export.graph.tasks.answers import Asked
from adapter_export.graph.tasks.asked import BASE
from adapter_export.runtime import Bundle, Session
from adapter_export.runtime.answerer import Reader
from adapter_export.runtime.generation.text_writer import TextWriter
from adapter_export.text import Pair, SidedText
from adapter_export.version import __version__
from adapter_export.words import argument, quoted

_SAMPLE = "a"
"""Text by whose answers the columns of the output are known."""

_TEXT, _PAIR, _CHOICES, _SIDE, _FILE = "text", "pair", "choices", "side", "file"

_DECODING = {
    "max_new_tokens": (DataType.long, 64),
    "temperature": (DataType.double, 0.0),
    "top_k": (DataType.long, None),
    "top_p": (DataType.double, None),
    "seed": (DataType.long, 0),
}
"""Types and defaults of the parameters of generated texts."""


def save_model(bundle: Bundle | Path | str, path: Path | str, *, adapter: str | None = None, **options: Any) -> None:
    """Save a bundle as a model of MLflow.

    Args:
        bundle: the bundle or its folder.
        path: the new folder.
        adapter: the adapter of calls that name none; `base` is the base. Default: the only one that answers.
        options: further arguments of `mlflow.pyfunc.save_model`.

    Raises:
        UsageError: several adapters answer, and none is named.
        RequestError: the adapter is not in the bundle, or the bundle reads neither texts nor files.
        FileError, FormatError: the bundle cannot be opened.
    """
    mlflow.pyfunc.save_model(str(path), **_arguments(bundle, adapter, options))


def log_model(
    bundle: Bundle | Path | str, name: str = "model", *, adapter: str | None = None, **options: Any
) -> ModelInfo:
    """Log a bundle as a model of MLflow to the active run.

    Args:
        bundle: the bundle or its folder.
        name: the name of the model.
        adapter: as in `save_model`.
        options: further arguments of `mlflow.pyfunc.log_model`, such as `registered_model_name`.

    Returns:
        MLflow's description of the model.

    Raises:
        UsageError, RequestError, FileError, FormatError: as `save_model`.
    """
    return mlflow.pyfunc.log_model(name=name, **_arguments(bundle, adapter, options))


def _load_pyfunc(path: str) -> BundleModel:
    """Open a saved bundle; MLflow calls it by this name."""
    return BundleModel(Bundle.open(path))


class BundleModel:
    """A bundle that predicts as MLflow does: a table of rows in, a table of answers out. Thread-safe.

    Args:
        bundle: the bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.session = bundle, bundle.session()

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return the answer to each row, with the columns of its JSON document.

        Args:
            data: a table with the columns of the signature.
            params: `adapter`, and `strength`, or options of `Decoding` for generated texts.

        Raises:
            UsageError: no adapter is named, and several answer.
            RequestError: a row does not fit the task of the adapter.
        """
        options = dict(params or {})
        rows = pd.DataFrame(data).to_dict("records")
        return pd.DataFrame(self.answers(rows, options.pop("adapter", None), options))

    def answers(
        self, rows: Sequence[Mapping[Any, Any]], adapter: str | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the answer to each row as JSON; arguments and errors as of `predict`."""
        if not rows:
            return []
        if self.generates(adapter):
            _check_full_strength(options)
            texts = self._writer.write([_text_of(row) for row in rows], adapter, decoding=_decoding(options))
            return [{"adapter": adapter, "text": text.text, "finish": text.finish} for text in texts]
        asked = [_asked(row) for row in rows]
        answers = self.reader.answer(asked, adapter, strength=options.get("strength"))
        answering = self.session.named(adapter) or self.session.base_head
        task = self.session.answering(answering)
        return [{"adapter": answering, "task": task.type, **answer.document()} for answer in answers]

    def generates(self, adapter: str | None) -> bool:
        """Return whether calls of an adapter generate texts: it has no task, and the bundle generates."""
        if self.bundle.manifest.generation is None:
            return False
        return adapter in (None, BASE) or self.session.task(str(adapter)) is None

    @cached_property
    def reader(self) -> Reader:
        """Reads texts or files; RequestError if the bundle reads neither."""
        manifest = self.bundle.manifest
        if manifest.media is not None:
            return self.bundle.files(manifest.media.medium, self.session)
        return self.bundle.texts(self.session)

    @cached_property
    def _writer(self) -> TextWriter:
        return self.bundle.writer(self.session)

    def signature(self, adapter: str | None) -> ModelSignature:
        """Return the columns of rows and answers, and the parameters with the default adapter.

        A column that some adapters answer without is optional.

        Raises:
            UsageError: several adapters answer, and none is named.
            RequestError: as `save_model`.
        """
        params = [ParamSpec("adapter", DataType.string, self._default(adapter))]
        answers = any(self.session.task(name) is not None for name in self.session.adapters)
        if self.bundle.manifest.media is not None:
            inputs = [ColSpec(DataType.binary, _FILE)]
        else:
            inputs = [ColSpec(DataType.string, _TEXT), *(_OTHER_COLUMNS if answers else ())]
        if self.bundle.manifest.generation is not None:
            params += [ParamSpec(name, kind, default) for name, (kind, default) in _DECODING.items()]
            params.append(ParamSpec("stop", DataType.string, [], (-1,)))
        if answers:
            params.append(ParamSpec("strength", DataType.double, 1.0))
        return ModelSignature(Schema(inputs), self._outputs(), ParamSchema(params))

    def _default(self, adapter: str | None) -> str:
        names = self._answering()
        if adapter is not None:
            if adapter != BASE and adapter not in self.session.adapters:
                raise RequestError("no such adapter", found=f"`{adapter}`", expected=quoted(self.session.adapters))
            return adapter
        if len(names) == 1:
            return names[0]
        raise UsageError(
            "several adapters answer, and none is named" if names else "no adapter answers, and none is named",
            where=self.bundle.folder,
            found=quoted(names or self.session.adapters),
            fix="name the default: " + argument("adapter", words="NAME"),
        )

    def _answering(self) -> list[str]:
        """Return the adapters that answer."""
        session: Session = self.session
        return [name for name in session.adapters if session.task(name) is not None or self.generates(name)]

    def _outputs(self) -> Schema | None:
        """Return the columns of answers, by the answer of each adapter to a sample; `None` for files."""
        if self.bundle.manifest.media is not None:
            return None
        answers = [self._sample(name) for name in self._answering()]
        types = {key: _type_of(value) for answer in answers for key, value in answer.items()}
        shared = {key for key in types if all(key in answer for answer in answers)}
        optional = {key: kind for key, kind in types.items() if key not in shared}
        columns = [ColSpec(kind, key) for key, kind in types.items() if key in shared]
        return Schema([*columns, *(ColSpec(kind, key, required=False) for key, kind in optional.items())])

    def _sample(self, adapter: str) -> Mapping[str, Any]:
        row, task = {_TEXT: _SAMPLE}, self.session.task(adapter)
        if task is not None and task.input == "pair":
            row[_PAIR] = _SAMPLE
        if task is not None and task.has_sides:
            row[_SIDE] = "query"
        (answer,) = self.answers([row], adapter, {"max_new_tokens": 1})
        return answer


_OTHER_COLUMNS = (
    ColSpec(DataType.string, _PAIR, required=False),
    ColSpec(Array(DataType.string), _CHOICES, required=False),
    ColSpec(DataType.string, _SIDE, required=False),
)
"""Columns of the rows of some tasks."""


def _arguments(bundle: Bundle | Path | str, adapter: str | None, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of MLflow's calls."""
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest, model = opened.manifest, BundleModel(opened)
    extra = "chat" if manifest.chat is not None else "text" if manifest.media is None else manifest.media.medium
    names = [record.name for record in manifest.adapters]
    return {
        "loader_module": __name__,
        "data_path": str(opened.folder),
        "signature": model.signature(adapter),
        "pip_requirements": [f"adapter-export[{extra},mlflow]=={__version__}"],
        "metadata": {"adapters": names, "digest": manifest.checksum, "base": manifest.base},
        **options,
    }


def _asked(row: Mapping[Any, Any]) -> Asked | bytes:
    """Return the text, pair, question, or file of a row."""
    values = {name: value for name, value in row.items() if not _is_missing(value)}
    if _FILE in values:
        return bytes(values[_FILE])
    text = _text_of(values)
    if _CHOICES in values:
        return [Pair(text, str(choice)) for choice in values[_CHOICES]]
    if _SIDE in values:
        return SidedText(text, values[_SIDE])
    return Pair(text, values[_PAIR]) if _PAIR in values else text


def _text_of(values: Mapping[Any, Any]) -> str:
    text = values.get(_TEXT)
    if not isinstance(text, str):
        raise RequestError("a row has no text", found=quoted(map(str, values)), expected=f"the column `{_TEXT}`")
    return text


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _decoding(options: Mapping[str, Any]) -> Decoding:
    known = {name: options[name] for name in (*_DECODING, "stop") if options.get(name) is not None}
    return Decoding(**known)


def _check_full_strength(options: Mapping[str, Any]) -> None:
    if options.get("strength") not in (None, 1.0):
        actual = f"`strength` {options['strength']}"
        raise RequestError("generated texts have no strength", found=actual, expected="1, or none")


def _type_of(value: object) -> Any:
    """Return MLflow's type of a value of JSON."""
    if isinstance(value, str | bool | int | float):
        kinds = {str: DataType.string, bool: DataType.boolean, int: DataType.long, float: DataType.double}
        return kinds[type(value)]
    if isinstance(value, Mapping):
        types = {key: _type_of(each) for key, each in value.items()}
        same = len(set(map(str, types.values()))) == 1
        return Map(next(iter(types.values()))) if same else Object([Property(key, kind) for key, kind in types.items()])
    if isinstance(value, list) and value:
        return Array(_type_of(value[0]))
    return AnyType()
