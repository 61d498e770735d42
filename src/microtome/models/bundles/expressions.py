"""Expressions of MONAI bundles: what they come to, where that needs no code of anybody's to run.

Literals, references, arithmetic, comparisons, conditions, subscripts and a few pure functions; everything else is left
as it stands. Nothing is ever handed to `eval`.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

REFERENCE = re.compile(r"@(\w+(?:(?:::|#)\w+)*)")
MOST = 10_000  # entries of a list and characters of a text: more is no setting
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict)},
    **{function.__name__: function for function in (len, max, min, round, abs, sum, sorted)},
}
WHOLE = frozenset(("len", "list", "tuple", "bool"))  # do not look at what is in a list
BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY: Mapping[type, Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
COMPARE: Mapping[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
}
# Names with dots that bundles write, and what they stand for. Number types go by their own name.
CONSTANTS: Mapping[str, Any] = {
    "monai.utils.CommonKeys.IMAGE": "image",
    "monai.utils.CommonKeys.LABEL": "label",
    "monai.utils.CommonKeys.PRED": "pred",
    "np.pi": math.pi,
    "math.pi": math.pi,
}
NUMBER_TYPE = re.compile(r"(?:torch|numpy|np)\.((?:u?int|b?float)\d*|half|double|long|short|bool)")


class UnknownError(Exception):
    """It cannot be told without running code, or names what is not there."""


def is_open(value: Any) -> bool:
    """Whether a value is an expression or a reference that could not be followed, or something yet to be made."""
    if isinstance(value, str):
        return value.startswith(("$", "@", "%"))
    return isinstance(value, Mapping) and "_target_" in value


def evaluate(text: str, look_up: Callable[[str], Any]) -> Any:
    """Return what an expression comes to.

    Args:
        text: without the `$` before it; `@name::part` are references.
        look_up: from `name::part` to its value; raises `UnknownError`.

    Raises:
        UnknownError: it is more than this module's arithmetic, or does not come to anything.
    """
    names: dict[str, str] = {}

    def stand_in(found: re.Match[str]) -> str:
        names[name := f"__reference_{len(names)}"] = found[1]
        return name

    try:
        tree = ast.parse(REFERENCE.sub(stand_in, text.strip()), mode="eval")
        return _value(tree.body, lambda name: look_up(names[name]) if name in names else _unknown(name))
    except UnknownError:
        raise
    except (SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        raise UnknownError(text) from error


def constant(text: str) -> Any:
    """Return what a name with dots stands for: a text, or a number type such as `float32`.

    Raises:
        UnknownError: it is none that bundles commonly write.
    """
    if text in CONSTANTS:
        return CONSTANTS[text]
    kind = NUMBER_TYPE.fullmatch(text)
    return kind[1] if kind else _unknown(text)


def _value(node: ast.expr, look_up: Callable[[str], Any]) -> Any:
    def part(inner: ast.expr) -> Any:
        return _value(inner, look_up)

    def of(inner: ast.expr) -> Any:
        """What is calculated with has to be known; what stands in a list need not."""
        value = part(inner)
        return _unknown("open") if is_open(value) else value

    found: Any
    match node:
        case ast.Constant(value):
            found = value
        case ast.Name(name):
            found = look_up(name)
        case ast.Attribute():
            found = constant(ast.unparse(node))
        case ast.List(items):
            found = [part(item) for item in items]
        case ast.Tuple(items):
            found = tuple(part(item) for item in items)
        case ast.Dict(keys, values) if None not in keys:
            found = {of(key): part(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case ast.IfExp(test, body, orelse):
            found = part(body) if of(test) else part(orelse)
        case ast.BoolOp(op, operands):
            found = of(operands[0])
            for operand in operands[1:]:
                if bool(found) == isinstance(op, ast.Or):
                    break
                found = of(operand)
        case ast.UnaryOp(op, operand) if type(op) in UNARY:
            found = UNARY[type(op)](of(operand))
        case ast.BinOp(left, op, right) if type(op) in BINARY:
            found = _binary(op, of(left), of(right))
        case ast.Compare(left, ops, others) if all(type(op) in COMPARE for op in ops):
            values = [_known(of(left)), *(_known(of(other)) for other in others)]
            pairs = zip(ops, values, values[1:], strict=False)
            found = all(COMPARE[type(op)](one, other) for op, one, other in pairs)
        case ast.Subscript(value, ast.Slice(lower, upper, step)):
            begin, end, by = (None if bound is None else of(bound) for bound in (lower, upper, step))
            found = of(value)[begin:end:by]
        case ast.Subscript(value, index):
            found = of(value)[of(index)]
        case ast.Call(ast.Name(name), arguments, keywords) if name in FUNCTIONS and not keywords:
            values = [of(argument) for argument in arguments]
            found = FUNCTIONS[name](*(values if name in WHOLE else map(_known, values)))
        case _:
            return _unknown(ast.dump(node)[:80])
    return _bounded(found)


def _known(value: Any) -> Any:
    """A value of which every part is known."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in parts:
        _known(item)
    return _unknown("open") if is_open(value) else value


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    """Arithmetic; what would repeat a list or a text many times is not begun."""
    if isinstance(op, ast.Mult):
        for one, other in ((left, right), (right, left)):
            if isinstance(one, list | tuple | str | bytes) and isinstance(other, int) and len(one) * other > MOST:
                return _unknown("a list of that length")
    if isinstance(op, ast.Mod) and isinstance(left, str | bytes):
        return _unknown("text with %")
    return BINARY[type(op)](left, right)


def _bounded(value: Any) -> Any:
    if isinstance(value, str | bytes | list | tuple | dict) and len(value) > MOST:
        return _unknown("too long")
    if isinstance(value, int) and value.bit_length() > MOST:
        return _unknown("too large")
    return value


def _unknown(what: str) -> Any:
    raise UnknownError(what)
