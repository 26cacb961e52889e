"""JSON in a torch archive, such as its program (`models/model.json`): every string is validated against a grammar.

torch turns many strings into Python: it resolves operators by name, evaluates sizes and guards, imports names from a
pytree's context, and inserts value names into the source text of a function. Anything not known to be harmless is
rejected. The fields are those of `torch/_export/serde/schema.py`, version 8.20, written by torch 2.12 to 2.15; versions
from 8.14 on (torch 2.9) have some of them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import accumulate
from typing import Any

import torch
from torch._export.serde import schema

from adapter_export.errors import BaseModelError, UnknownFieldError, UnsafeArchiveError
from adapter_export.words import argument

NEWEST = "2.15"
"""Newest torch whose archives were tested."""

SYMBOL = re.compile(r"[su]\d{1,6}")
"""Name of a symbolic size: `s` if it comes from an input, `u` if it comes from data."""

_FUNCTIONS = frozenset(
    {
        *("Add", "Mul", "Pow", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing", "Max"),
        *("Min", "Abs", "Integer", "Rational", "Equality", "Unequality", "GreaterThan", "StrictGreaterThan"),
        *("LessThan", "StrictLessThan", "And", "Or", "Not", "ToFloat", "TruncToInt", "CeilToInt", "FloorToInt"),
        *("IntTrueDiv", "FloatTrueDiv", "Identity"),
    }
)
_LONGEST = 10_000
_DEEPEST = 60
"""Limits of an expression before it is parsed: deep nesting exhausts Python's parser."""

_LARGEST_EXPONENT = 16
_LARGEST_NUMBER = 2**63
_MOST_BITS = 2**14
_FLOAT = re.compile(r"-?\d{1,40}(\.\d{0,40})?(e[+-]?\d{1,3})?")


def is_size_expression(text: str) -> bool:
    """Return whether this is arithmetic over symbolic sizes and nothing else, in the form of `sympy.srepr`.

    An example is `Mul(Integer(2), Symbol('s0', integer=True))`.
    """
    return (tree := _parse(text)) is not None and _is_size(tree) and _bits(tree) <= _MOST_BITS


def _parse(text: str) -> ast.expr | None:
    """Return the syntax tree, without evaluating it; `None` if it is too long, too deep or not an expression."""
    if len(text) > _LONGEST or not text.isascii():
        return None
    depths = accumulate((character in "([{") - (character in ")]}") for character in text)
    signs = map(len, re.findall(r"[-+~*\s]{2,}", text))  # signs and powers nest without brackets
    if max([*depths, *signs], default=0) > _DEEPEST:
        return None
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_size(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return _is_number(node)
    if isinstance(node, ast.Name):
        return SYMBOL.fullmatch(node.id) is not None or node.id in {"true", "false"}
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant) and _is_size(node.operand)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and _is_call(node.func.id, node)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) < _LARGEST_NUMBER


def _is_call(function: str, call: ast.Call) -> bool:
    if function == "Symbol":
        return all(_is_flag(keyword) for keyword in call.keywords) and _is_text(call, SYMBOL)
    if function == "Float":
        return all(_is_number(keyword.value) for keyword in call.keywords) and _is_text(call, _FLOAT)
    if function == "Pow":
        return not call.keywords and len(call.args) == 2 and _is_size(call.args[0]) and _is_power(call.args[1])
    return function in _FUNCTIONS and not call.keywords and all(_is_size(argument) for argument in call.args)


def _is_flag(keyword: ast.keyword) -> bool:
    """Return whether it is a flag such as `positive=True`, but not `**x`."""
    return bool(keyword.arg) and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool)


def _is_text(call: ast.Call, pattern: re.Pattern[str]) -> bool:
    values = [argument.value if isinstance(argument, ast.Constant) else None for argument in call.args]
    return len(values) == 1 and isinstance(values[0], str) and pattern.fullmatch(values[0]) is not None


def _is_power(exponent: ast.expr) -> bool:
    """Return whether this is a small integer exponent, or one half: a square root."""
    text = ast.unparse(exponent)
    match = re.fullmatch(r"Integer\((-?\d{1,2})\)", text)
    return text == "Rational(1, 2)" or (match is not None and abs(int(match[1])) <= _LARGEST_EXPONENT)


def _bits(node: ast.expr) -> int:
    """Return an upper bound on the bits of the largest number that sympy may compute for this expression.

    A power of a power makes a short text ask for a huge result; symbols stay symbolic.
    """
    if isinstance(node, ast.Constant):
        return node.value.bit_length() + 1 if isinstance(node.value, int) else 64
    if not isinstance(node, ast.Call) or ast.unparse(node.func) in ("Symbol", "Float"):
        return 1
    of = [_bits(argument) for argument in node.args]
    if ast.unparse(node.func) == "Pow":
        exponents = re.findall(r"\d+", ast.unparse(node.args[1]))
        return of[0] * max(1, int(exponents[0]))
    return sum(of) + 1


def is_guard(text: str) -> bool:
    """Return whether this only compares sizes of inputs, as in `L['ids'].size()[1] <= 512`."""
    return (tree := _parse(text)) is not None and _is_condition(tree)


def _is_condition(node: ast.expr) -> bool:
    if isinstance(node, ast.Compare):
        return all(_is_measure(side) for side in (node.left, *node.comparators))
    if isinstance(node, ast.BoolOp):
        return all(_is_condition(value) for value in node.values)
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and _is_condition(node.operand)


def _is_measure(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        arithmetic = isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.FloorDiv | ast.Div | ast.Mod)
        return arithmetic and _is_measure(node.left) and _is_measure(node.right)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _is_measure(node.operand)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"max", "min"}:
        return not node.keywords and all(_is_measure(argument) for argument in node.args)
    if isinstance(node, ast.Subscript):
        return _SIZE_OF_INPUT.fullmatch(ast.unparse(node)) is not None
    return _is_number(node)


_SIZE_OF_INPUT = re.compile(r"L(?:\[(?:'[^'\\]*'|\d+)\])+\.(?:size|stride)\(\)\[\d+\]")
"""Size or stride of an input: `L['ids'].size()[1]`, `L['batch']['ids'][0].stride()[0]`."""


TRUST = (
    "load it with " + argument("trust_pickle", True) + " only if you trust its author; otherwise ask them for one of "
    "`ae.capture`"
)

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"[A-Za-z0-9_.@\-]*")
_KEY = re.compile(r"[\w.\-/ ]+")
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_MODULE_STACK = re.compile(r"""[\w.,;@\-\[\]'<>() :]*""")
_SOURCE_LINE = re.compile(r"\w[\w./\-]{0,200}:\d{1,7}", re.ASCII)
"""The part of a stack trace that `capture` keeps: file and line."""

_REGIONS = frozenset({"torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.higher_order.wrap_with_autocast"})
_ON_NUMBERS = frozenset(
    {
        *("_operator.add", "_operator.sub", "_operator.mul", "_operator.floordiv", "_operator.truediv"),
        *("_operator.mod", "_operator.pow", "_operator.neg", "_operator.pos", "_operator.eq", "_operator.ne"),
        *("_operator.lt", "_operator.le", "_operator.gt", "_operator.ge", "_operator.and_", "_operator.or_"),
        *("torch.sym_not", "torch.sym_int", "torch.sym_float", "torch.sym_ite", "torch.sym_max"),
        *("torch.sym_min", "torch.sym_sqrt", "torch.sym_sum", "math.trunc"),
    }
)
_PLAIN_CONTAINERS = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
_OBJECTS = frozenset({"custom_obj", "as_custom_obj", "custom_obj_values", "token"})
_TABLES_OF_VALUES = frozenset({"tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"})
_FIELDS = frozenset(
    {
        *("arg", "as_bool", "as_bools", "as_complex", "as_custom_obj", "as_device", "as_expr", "as_float"),
        *("as_float_lists", "as_floats", "as_graph", "as_int", "as_int_lists", "as_ints", "as_layout"),
        *("as_memory_format", "as_name", "as_nested_tensors", "as_none", "as_operator", "as_optional_tensor"),
        *("as_optional_tensors", "as_scalar_type", "as_string", "as_string_to_argument", "as_strings", "as_sym_bool"),
        *("as_sym_bools", "as_sym_float", "as_sym_floats", "as_sym_int", "as_sym_ints", "as_tensor", "as_tensors"),
        *("buffer", "buffer_mutation", "buffer_name", "class_fqn", "config", "constant_input", "custom_obj"),
        *("custom_obj_name", "custom_obj_values", "device", "dtype", "expr_str", "field_names", "forward_arg_names"),
        *("fqn", "gradient_to_parameter", "gradient_to_user_input", "graph", "graph_module", "guards_code", "hint"),
        *("imag", "in_spec", "index", "input_specs", "inputs", "is_hop_single_tensor_return", "is_param"),
        *("is_single_tensor_return", "kind", "layout", "loss_output", "major", "max_val", "metadata", "min_val"),
        *("minor", "module_call_graph", "name", "nodes", "opset_version", "out_spec", "output_specs", "outputs"),
        *("parameter", "parameter_mutation", "parameter_name", "path_name", "persistent", "range_constraints"),
        *("real", "requires_grad", "schema_version", "signature", "sizes", "storage_offset", "strides"),
        *("sym_bool_values", "sym_float_values", "sym_int_values", "target", "tensor_constant"),
        *("tensor_constant_name", "tensor_meta", "tensor_values", "token", "torch_version"),
        *("treespec_namedtuple_fields", "type", "use_pickle", "user_input", "user_input_mutation", "user_input_name"),
        *("user_output", "value", "verifiers"),
    }
)
"""Fields of a program and of the lists of its tensors."""

_VERSION = re.compile(r"[\w.+\-<= ]{1,60}")
_KEPT_METADATA = {"nn_module_stack": _MODULE_STACK, "torch_fn": _MODULE_STACK, "stack_trace": _SOURCE_LINE}


def check_program(document: object, where: str) -> dict[str, Any]:
    """Check every string of a parsed `models/model.json` against its grammar; `where` is the entry, for messages.

    Raises:
        UnsafeArchiveError: a string could run code.
        UnknownFieldError: a string is in a field unknown to both this version and the installed torch.
        BaseModelError: it is not a program, or a program with inputs or outputs of a class.
    """
    if not isinstance(document, dict) or "graph_module" not in document:
        raise BaseModelError("does not contain a program", where=where, fix="save it again with `ae.capture`")
    check_texts(document, where, document.get("torch_version"))
    return document


def check_texts(document: object, where: str, writer: object) -> None:
    """Check every string of a parsed entry of an archive; `writer` is the torch version named in the archive.

    Errors as for `check_program`.
    """
    version = writer if isinstance(writer, str) and _VERSION.fullmatch(writer) else "unknown"
    _Screening(where, version, frozenset(_value_names(document))).check(document, "", "")


def _value_names(value: object) -> Iterator[str]:
    """Yield the names of the values that the graphs of a program compute, each an identifier."""
    if isinstance(value, list):
        for item in value:
            yield from _value_names(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in _TABLES_OF_VALUES and isinstance(item, dict):
                yield from filter(_IDENTIFIER.fullmatch, item)
            yield from _value_names(item) if name in _FIELDS else ()


@dataclass(frozen=True)
class _Screening:
    """Check of one entry.

    Attributes:
        where: the file and its entry, for messages.
        writer: the torch version that wrote the archive, according to the archive.
        values: names of the values in its graphs.
    """

    where: str
    writer: str
    values: frozenset[str]

    def check(self, value: object, key: str, path: str) -> None:
        """Check a value under a key; `path` is its location in the document."""
        if isinstance(value, str):
            rule = _RULES.get(key)
            if rule is None:
                raise self._unsafe("contains unexpected text", path, value)
            if key in {"in_spec", "out_spec"}:
                self._check_containers(value, path)
            if not rule(value):
                raise self._unsafe(_REASONS.get(key, "contains a name that is not an identifier"), path, value)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self.check(item, key, f"{path}[{index}]")
        elif isinstance(value, dict) and key != "metadata":  # `cleaned` selects the metadata to keep
            for name, item in value.items():
                self._check_entry(key, name, item, f"{path}.{name}" if path else name)

    def _check_entry(self, key: str, name: str, item: object, path: str) -> None:
        if key in _TABLES:  # keys of a table are value names, not field names
            if not _TABLES[key](name):
                raise self._unsafe("contains a name that is not an identifier", path, name)
            self.check(item, "", path)
        elif name not in _FIELDS:
            self._check_unknown(name, item, path)
        elif name in _OBJECTS and item:
            raise self._unsafe("contains Python objects besides its tensors", path, name)
        else:
            self.check(item, name, path)

    def _check_unknown(self, name: str, item: object, path: str) -> None:
        """Accept a field of a newer torch without text, which torch ignores if it does not know it either.

        If the installed torch knows the field, its text may be names of values, which torch reads anyway.
        """
        texts = set(_texts(item))
        if not texts:
            return
        installed = name in _installed_fields()
        if installed and texts <= self.values:
            return
        wanted = f"torch {NEWEST} or older" if installed else f"torch {torch.__version__.partition('+')[0]}"
        raise UnknownFieldError(
            "contains text in a field of a newer torch",
            where=f"{self.where} at `{path}`",
            found=f"{_shown(min(texts - self.values, default=min(texts)))}, written by torch {self.writer}",
            expected=f"the fields of torch {NEWEST} and older",
            fix=f"capture the model again with {wanted}, or export it with `torch.onnx.export` and use the ONNX file; "
            "if you wrote this file yourself, load it with " + argument("trust_pickle", True),
        )

    def _unsafe(self, what: str, path: str, found: str) -> UnsafeArchiveError:
        return UnsafeArchiveError(what, where=f"{self.where} at `{path}`", found=_shown(found), fix=TRUST)

    def _check_containers(self, text: str, path: str) -> None:
        """Reject classes that torch would look up, such as transformers outputs: harmless, but not portable."""
        for name in re.findall(r'"type": "([\w.]+)"', text):
            if name not in _PLAIN_CONTAINERS and not name.startswith("collections."):
                raise BaseModelError(
                    "has inputs or outputs of a class instead of plain tensors",
                    where=f"{self.where} at `{path}`",
                    found=f"`{name}`",
                    expected="tensors in tuples, lists and dicts",
                    fix="capture the model with `ae.capture`, which writes plain tensors",
                )


def _texts(value: object) -> Iterator[str]:
    """Yield every string of a value, and the keys of its tables; a key that is not a field name belongs to a table."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _FIELDS:
                yield name
            yield from _texts(item)


def _installed_fields() -> set[str]:
    """Return the fields that the installed torch reads."""
    return {one.name for kind in vars(schema).values() if is_dataclass(kind) for one in fields(kind)}


def _shown(text: str) -> str:
    return f"`{text}`" if len(text) <= 120 else f"`{text[:120]}…`"


def _is_identifier(text: str) -> bool:
    return text == "" or _IDENTIFIER.fullmatch(text) is not None


def _is_operator(text: str) -> bool:
    """Return whether it is a tensor function of torch, arithmetic on sizes, or a region without autograd."""
    aten = _ATEN.fullmatch(text)
    if aten is None:
        return text in _ON_NUMBERS or text in _REGIONS
    name, overload = aten.groups()
    packet = getattr(torch.ops.aten, name, None)
    # `from_file` maps any file of the machine
    if not isinstance(packet, torch._ops.OpOverloadPacket) or name == "from_file":
        return False
    return overload.removeprefix("default") in packet._overload_names


def _is_treespec(text: str, keys: re.Pattern[str]) -> bool:
    try:
        protocol, spec = json.loads(text)
        return protocol == 1 and _is_plain_tree(spec, keys)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _is_plain_tree(spec: Mapping[str, Any], keys: re.Pattern[str]) -> bool:
    if set(spec) != {"type", "context", "children_spec"} or not isinstance(spec["children_spec"], list):
        return False
    if spec["type"] is not None and spec["type"] not in _PLAIN_CONTAINERS:
        return False
    context = None if spec["context"] is None else json.loads(spec["context"])
    if spec["type"] in {"builtins.dict", "collections.OrderedDict"}:
        fits = isinstance(context, list) and all(isinstance(key, str) and keys.fullmatch(key) for key in context)
    else:
        fits = context is None
    return fits and all(_is_plain_tree(child, keys) for child in spec["children_spec"])


_Rule = Callable[[str], object]

_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("name", "as_name", "forward_arg_names", "type", "user_input_name", "path_name"), _is_identifier),
    **dict.fromkeys(("fqn", "parameter_name", "buffer_name", "tensor_constant_name"), _PATH.fullmatch),
    **dict.fromkeys(("target", "as_operator"), _is_operator),
    **dict.fromkeys(("as_string", "as_strings"), lambda text: len(text) < 10_000),
    **dict.fromkeys(
        ("as_float", "as_floats", "as_float_lists", "real", "imag"), {"Infinity", "-Infinity", "NaN"}.__contains__
    ),
    "expr_str": is_size_expression,
    "guards_code": is_guard,
    "in_spec": lambda text: _is_treespec(text, _IDENTIFIER),
    "out_spec": lambda text: _is_treespec(text, _KEY),
    "torch_version": _VERSION.fullmatch,
    "verifiers": re.compile(r"[A-Z_]*").fullmatch,
}
"""Validators of the text under each key; torch keeps the text of `as_string` a string."""

_TABLES: Mapping[str, _Rule] = {
    **dict.fromkeys(_TABLES_OF_VALUES | {"opset_version", "as_string_to_argument"}, _is_identifier),
    "config": _PATH.fullmatch,
    "range_constraints": SYMBOL.fullmatch,
    "treespec_namedtuple_fields": lambda _: False,
}
"""Objects whose keys are names, and validators of these."""

_REASONS = {
    **dict.fromkeys(("target", "as_operator"), "calls a function that is not one of torch's own on tensors"),
    "expr_str": "contains a size that is not plain arithmetic, which torch would evaluate as Python",
    "guards_code": "contains a condition that is not a comparison of lengths, which torch would run as Python",
    **dict.fromkeys(("in_spec", "out_spec"), "has inputs or outputs in containers that torch would import"),
}


def cleaned(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a program without guards, stack traces (except one line) and paths of the machine it was made on."""
    # torch would run the guards as Python; they were read before
    return {**_cleaned(document, ""), "guards_code": []}


def _cleaned(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        if key == "metadata":
            kept = {name: value[name] for name in _KEPT_METADATA if isinstance(value.get(name), str)}
            return {name: text for name, text in kept.items() if _KEPT_METADATA[name].fullmatch(text)}
        return {name: _cleaned(item, "" if key in _TABLES else name) for name, item in value.items()}
    return [_cleaned(item, key) for item in value] if isinstance(value, list) else value
