"""One application of an op, held against the op's row: attributes, parameters and dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from adapter_export.errors import GraphError
from adapter_export.graph.op_spec import Dim, OpSpec, Shape


def check_attributes(spec: OpSpec, attributes: Mapping[str, float], where: str) -> None:
    """Each is there and within its range, and there are no others."""
    _check_names("attributes", set(attributes), set(spec.attributes), set(), where)
    for name, interval in spec.attributes.items():
        number = attributes[name]
        if number not in interval:
            raise GraphError(f"attribute `{name}` is out of range", where=where, found=number, expected=interval)


def bind_dimensions(
    spec: OpSpec, inputs: tuple[Shape, ...], roles: Mapping[str, str], shapes: Mapping[str, Shape], where: str
) -> dict[str, Dim]:
    """The op's own dimensions in the graph's terms.

    Args:
        spec: the op.
        inputs: the shapes of the values that it reads.
        roles: the graph's parameter for each role.
        shapes: the shape of each of the graph's parameters.
        where: the node, for messages.

    Raises:
        GraphError: a role is missing or left over, or a parameter has no shape or another than its role asks for.
    """
    needed = {parameter.role for parameter in spec.parameters if not parameter.optional}
    allowed = {parameter.role for parameter in spec.parameters}
    _check_names("parameters", set(roles), needed, allowed - needed, where)
    dims: dict[str, Dim] = {"in": inputs[0][-1]}
    if spec.arity.step:
        dims["values"] = len(inputs)
    for parameter in spec.parameters:
        if parameter.role in roles:
            _bind(roles[parameter.role], parameter.shape, shapes, dims, where)
    return dims


def _bind(name: str, template: tuple[Dim, ...], shapes: Mapping[str, Shape], dims: dict[str, Dim], where: str) -> None:
    shape = shapes.get(name)
    if shape is None:
        raise GraphError(
            "a parameter has no shape", where=where, found=f"`{name}`", expected="an entry in `parameters`"
        )
    pairs = zip(template, shape, strict=False)
    bound = tuple(dims.setdefault(symbol, dim) if isinstance(symbol, str) else symbol for symbol, dim in pairs)
    if len(shape) != len(template) or bound != shape:
        expected = [dims.get(symbol, symbol) if isinstance(symbol, str) else symbol for symbol in template]
        raise GraphError(f"parameter `{name}` has a wrong shape", where=where, found=list(shape), expected=expected)


def check_three_axes(op: str, output: str, rank: int | None) -> None:
    """Hold what an op of `THREE_AXES_OPS` reads against [batch, tokens, width], as some bases flatten the first two.

    Args:
        op: the op.
        output: the value that it defines, for messages.
        rank: how many axes there are, none where that is unknown.

    Raises:
        GraphError: not three.
    """
    if rank not in {None, 3}:
        raise GraphError(
            "an op that tells rows from tokens reads a value that has both on one axis",
            where=f"`{output}` (`{op}`)",
            found=f"{rank} axes",
            expected="[batch, tokens, width]",
            fix="choose a kind of adapter without this op, or export the base so that it keeps the two apart",
        )


def broken_products(spec: OpSpec, numbers: Mapping[str, int]) -> Iterator[str]:
    """The dimensions that are not the product of others that the op needs them to be, in words.

    Args:
        spec: the op.
        numbers: the op's own dimensions, as far as they are known.
    """
    for name, factors in spec.products.items():
        if not {name, *factors} <= numbers.keys():
            continue
        product = math.prod(numbers[factor] for factor in factors)
        if numbers[name] != product:
            formula = " = ".join(filter(None, [name, "·".join(factors)]))
            yield f"{formula} is {numbers[name]}, not {product}"


def _check_names(what: str, found: set[str], needed: set[str], optional: set[str], where: str) -> None:
    if not needed <= found <= needed | optional:
        names = ", ".join(sorted(needed)) or "none"
        more = f" (and perhaps {', '.join(sorted(optional))})" if optional else ""
        raise GraphError(f"wrong {what}", where=where, found=", ".join(sorted(found)) or "none", expected=names + more)
