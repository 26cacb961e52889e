"""What a model takes, as it is written on the command line: `input_ids=int64[batch,sequence]`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from adapter_export.errors import UsageError
from adapter_export.format.manifest import Axis, InputRecord

_TYPES = ("float32", "int64", "int32", "bool")
_INPUT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<dtype>\w+)\[(?P<axes>[^\[\]]*)\]")
_AXIS = re.compile(r"[A-Za-z_]\w*|[1-9][0-9]{0,8}")


def parse_inputs(texts: Sequence[str]) -> tuple[InputRecord, ...]:
    """The inputs that `--input` describes, in their order.

    Raises:
        UsageError: one is not of the form `NAME=TYPE[AXIS,…]`, or two have one name.
    """
    records = tuple(map(_parse, texts))
    names = [record.name for record in records]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError("an input is described twice", where="`--input`", found=f"`{twice}`", fix="leave one out")
    return records


def _parse(text: str) -> InputRecord:
    found = _INPUT.fullmatch(text)
    axes = [] if found is None else [axis.strip() for axis in found["axes"].split(",") if found["axes"].strip()]
    if found is None or found["dtype"] not in _TYPES or not all(map(_AXIS.fullmatch, axes)):
        raise UsageError(
            "an input that cannot be read",
            where="`--input`",
            found=f"`{text}`",
            expected=f"`NAME=TYPE[AXIS,…]` with a type of {', '.join(_TYPES)}",
            fix="write it as `input_ids=int64[batch,sequence]`; an axis is a number, or has a name and is dynamic",
        )
    return InputRecord(found["name"], found["dtype"], tuple(map(_axis, axes)), "values")


def _axis(text: str) -> Axis:
    return int(text) if text.isdecimal() else text
