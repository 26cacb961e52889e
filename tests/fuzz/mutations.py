"""Mutations of files that keep most of their form, to reach code after the first check.

All choices are drawn from a `random.Random`: a real one, or Hypothesis's, which can shrink findings.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Mutation = Callable[[bytes, Random], bytes]

_DEEP: Any = []
for _ in range(60):
    _DEEP = [_DEEP]

_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 64, 2**31, 2**63, 10**9, -(10**18), 10**400, 0.5, -0.0, 1e308, 1e-320),
    *("", "a", "head", "float32", "CON", "../x", "/dev/zero", "\x1b]0;x\x07", "\u202e", "\ud800", "a" * 3000),
    *([], {}, [[]], [None], [1, "a", {}], {"": 0}, {"a": [1]}, _DEEP, [0] * 500, {str(n): n for n in range(300)}),
)
_RAW = (b"NaN", b"Infinity", b"1e999", b"1" * 5000, b"\xff", b'"\\ud800"', b"[" * 3000, b'{"a":1,"a":2}', b"")
_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)


def of_bytes(data: bytes, random: Random) -> bytes:
    """Flip, cut, repeat, or write a number that lengths go wrong at."""
    made = bytearray(data or b"\0")
    for _ in range(random.randint(1, 3)):
        at, count = random.randrange(len(made)), random.randint(1, 16)
        match random.randint(0, 6):
            case 0:
                made[at] ^= 1 << random.randint(0, 7)
            case 1:
                made[at:] = b""
            case 2:
                del made[at : at + count]
            case 3:
                made[at:at] = made[at : at + count] * random.randint(1, 4)
            case 4:
                size = random.choice((1, 2, 4, 8))
                number = random.choice(_INTEGERS) % 2 ** (8 * size)
                made[at : at + size] = number.to_bytes(size, random.choice(("little", "big")))
            case 5:
                made[at : at + count] = bytes(count)
            case _:
                made[at] = random.randint(0, 255)
        if not made:
            made = bytearray(b"\0")
    return bytes(made)


def _places(document: Any) -> list[tuple[Any, Any]]:
    """All values of a document, as containers and keys."""
    found, left = list[tuple[Any, Any]](), [document]
    while left:
        one = left.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            left.append(one[key])
    return found


def of_value(document: Any, random: Random) -> Any:
    """Change values of a JSON document: others, none, twice, moved, or under other names."""
    whole = [document]
    for _ in range(random.randint(1, 3)):
        places = _places(whole)
        holder, key = random.choice(places)
        match random.randint(0, 5):
            case 0 | 1:
                holder[key] = copy.deepcopy(random.choice(_VALUES))
            case 2:
                del holder[key]
                if not whole:
                    whole = [{}]
            case 3:
                other, at = random.choice(places)
                if at in other if isinstance(other, dict) else at < len(other):
                    holder[key] = json.loads(json.dumps(other[at]))
            case 4 if isinstance(holder, list):
                holder += [holder[key]] * random.choice((1, 1, 2, 300))
            case 4:
                holder[random.choice(("a", "", "x" * 300, "\x1b[2J", *list(holder)))] = holder.pop(key)
            case _:
                value = holder[key]
                if isinstance(value, bool) or not isinstance(value, int | float | str):
                    holder[key] = copy.deepcopy(random.choice(_VALUES))
                elif isinstance(value, str):
                    holder[key] = random.choice((value[:-1], value + "x", value.upper(), value * 50, value[::-1]))
                else:
                    holder[key] = random.choice((value + 1, -value, value * 1000, value // 3, str(value)))
    return whole[0]


def of_json(data: bytes, random: Random) -> bytes:
    """Change a JSON document, or write something into its text that is none."""
    if random.randint(0, 9) == 0:
        at = random.randrange(len(data) + 1)
        return data[:at] + random.choice(_RAW) + data[at + random.randint(0, 3) :]
    return json.dumps(of_value(json.loads(data), random)).encode(errors="surrogatepass")


def of_safetensors(data: bytes, random: Random) -> bytes:
    """Change the header of a safetensors file, or any byte."""
    if random.randint(0, 3) == 0:
        return of_bytes(data, random)
    (length,) = struct.unpack("<Q", data[:8])
    header = of_json(data[8 : 8 + length], random)
    wrong = random.choice((0, 0, 0, 0, 1, -1, 2**40))
    return struct.pack("<Q", max(0, len(header) + wrong)) + header + data[8 + length :]


def of_zip(inner: Callable[[str], Mutation]) -> Mutation:
    """Return a mutation that changes, removes, renames or repacks entries."""

    def change(data: bytes, random: Random) -> bytes:
        if random.randint(0, 5) == 0:
            return of_bytes(data, random)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(name, archive.read(name)) for name in archive.namelist()]
        at = random.randrange(len(entries))
        name, content = entries[at]
        method = zipfile.ZIP_STORED
        match random.randint(0, 9):
            case 0:
                del entries[at]
            case 1:
                entries[at] = (random.choice(("../x", "a/b", "", name + "x", random.choice(entries)[0])), content)
            case 2:
                method = random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            case _:
                entries[at] = (name, inner(name)(content, random))
        packed = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(packed, "w", method) as archive:
            warnings.simplefilter("ignore")  # two entries of one name
            for name, content in entries:
                archive.writestr(zipfile.ZipInfo(name or "x"), content, method)
        return packed.getvalue()

    return change


def of_npy(data: bytes, random: Random) -> bytes:
    """Change the header of a NumPy file, or any byte."""
    if random.randint(0, 2) == 0:
        return of_bytes(data, random)
    (length,) = struct.unpack("<H", data[8:10])
    header, body = data[10 : 10 + length].rstrip(), data[10 + length :]
    shapes = (b"(2, 3)", b"()", b"(0,)", b"(-1,)", b"(1099511627776,)", b"(" + b"1, " * 70 + b")", b"((), )")
    types = (b"'<f4'", b"'|O'", b"'<U9'", b"'<M8[s]'", b"'|V0'", b"'<f9'", b"[('a', '<f4')]", b"'<c16'")
    pieces = header.split(b"'shape': ")
    if random.randint(0, 1) and len(pieces) == 2:
        header = pieces[0] + b"'shape': " + random.choice(shapes) + b", }"
    else:
        kind = header.split(b"'descr': ")[-1].split(b", 'fortran")[0]
        header = header.replace(kind, random.choice(types))
    header += b"\n"
    return data[:8] + struct.pack("<H", len(header)) + header + body


def of_text(data: bytes, random: Random) -> bytes:
    """Change lines and cells of a table."""
    if random.randint(0, 3) == 0:
        return of_bytes(data, random)
    lines = data.split(b"\n")
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(lines))
        cut = random.randrange(len(lines[at]) + 1)
        pieces = (b",", b"\t", b'"', b'""', b"\x00", b"\r", b"\xff\xfe", b"\xed\xa0\x80", b"{", b"[" * 2000, *_RAW)
        match random.randint(0, 4):
            case 0:
                lines[at] = lines[at][:cut] + random.choice(pieces) + lines[at][cut:]
            case 1:
                lines[at] = lines[random.randrange(len(lines))]
            case 2:
                del lines[at]
            case 3:
                lines[at:at] = [lines[at]] * random.choice((1, 2, 100))
            case _:
                lines[at] = lines[at].replace(random.choice((b",", b'"', b":", b"a")), random.choice(pieces))
        lines = lines or [b""]
    return b"\n".join(lines)


def of_pickle(data: bytes, random: Random) -> bytes:
    """Put operations into a pickle, or change any byte."""
    if random.randint(0, 1):
        return of_bytes(data, random)
    doubled = b"".join(b"h\x01h\x01\x86q\x01" for _ in range(random.choice((2, 40))))
    pieces = (b"}", b")", b"N", b"]", b"(", b"0", b"\x85", b"\x86", b"R", b"b", b"u.", b"cos\nsystem\n", b"q\x01")
    at = random.randrange(len(data))
    return data[:at] + random.choice((*pieces, doubled)) + data[at + random.randint(0, 2) :]


def _is_repeated(field: FieldDescriptor) -> bool:
    known = getattr(field, "is_repeated", None)  # older releases of protobuf have a label
    return field.label == field.LABEL_REPEATED if known is None else known


def _messages(message: Message) -> list[Message]:
    found, left = list[Message](), [message]
    while left:
        one = left.pop()
        found.append(one)
        for field, value in one.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                left += list(value) if _is_repeated(field) else [value]
    return found


def of_onnx(data: bytes, random: Random) -> bytes:
    """Change fields of an ONNX model anywhere in it, by their types; or any byte."""
    if random.randint(0, 9) == 0:
        return of_bytes(data, random)
    model = onnx.ModelProto.FromString(data)
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    operators = ("Identity", "Loop", "If", "Scan", "Cast", "Reshape", "Gemm", "Split", "Dropout", "Expand", "Sum", "no")
    texts = ("", "x", "\x1b[2J", "com.microsoft", *names[:: max(1, len(names) // 8)], *operators)
    for _ in range(random.randint(1, 3)):
        message = random.choice(_messages(model))
        fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
        field = random.choice(fields if random.randint(0, 3) else list(message.DESCRIPTOR.fields))
        repeated, value = _is_repeated(field), getattr(message, field.name)
        if repeated and len(value):
            at = random.randrange(len(value))
            match random.randint(0, 3):
                case 0:
                    del value[at]
                    continue
                case 1:
                    value.append(value[at])
                    continue
                case 2:
                    other = value[random.randrange(len(value))]
                    if field.type == FieldDescriptor.TYPE_MESSAGE:
                        value[at].CopyFrom(type(other).FromString(other.SerializeToString()))
                    else:
                        value[at] = other
                    continue
        one: Any
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            message.ClearField(field.name)
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            one = random.choice(texts)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            one = random.choice((b"", b"x", b"\xff" * 8, bytes(64)))
        elif field.type == FieldDescriptor.TYPE_ENUM:
            one = random.choice([value.number for value in field.enum_type.values])
        elif field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
            one = random.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
        else:
            small = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32)
            unsigned = field.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
            large = *(() if unsigned else (-1,)), *(() if small else (2**40, 2**62))
            one = random.choice((0, 1, 2, 7, 16, 70, 2**31 - 1, *large))
        if not repeated:
            setattr(message, field.name, one)
        elif len(value):
            value[random.randrange(len(value))] = one
        else:
            value.append(one)
    return model.SerializeToString()
