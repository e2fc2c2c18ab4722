"""Checks of parameter values against type annotations, for construction and for policy files."""

from __future__ import annotations

import math
import types
from typing import Any, Literal, Union, get_args, get_origin


def fits(hint: Any, value: object) -> bool:
    """Whether ``value`` is of the annotated type. A bool is no number, an int passes for a float, a NaN never fits."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(arg, value) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(fits(args[0], v) for v in value)
        return len(args) == len(value) and all(fits(a, v) for a, v in zip(args, value, strict=True))
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    return isinstance(value, origin or hint)


def describe(hint: Any) -> str:
    """The annotated type in words, for error messages."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is Literal:
        return ("" if len(args) == 1 else "one of ") + ", ".join(repr(arg) for arg in args)
    if origin is tuple:
        return "a list of " + ", ".join(describe(arg) for arg in args if arg is not Ellipsis)
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "nothing"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))
