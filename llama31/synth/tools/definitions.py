"""Functions of Python code as definitions of tools, and whether a call keeps to one.

A function is mined where a caller needs nothing but JSON: top-level, documented, neither private nor asynchronous, and
every argument with a type that JSON has, or a default that tells it. Definitions are those of OpenAI's API.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

JSON_TYPES: dict[str, dict[str, Any]] = {
    "str": {"type": "string"}, "int": {"type": "integer"}, "float": {"type": "number"}, "bool": {"type": "boolean"},
    "list": {"type": "array"}, "List": {"type": "array"}, "dict": {"type": "object"}, "Dict": {"type": "object"},
    "Sequence": {"type": "array"}, "Iterable": {"type": "array"}, "Mapping": {"type": "object"},
}  # fmt: skip
PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,),
    "object": (dict,),
}  # fmt: skip
_ARGUMENT = re.compile(r"^[ \t]*(?::param\s+(?:\w+\s+)?)?(\w+)\s*(?:\([^)\n]*\))?[ \t]*:[ \t]*(\S.*)$", re.MULTILINE)


class Unsuitable(ValueError):
    """A function that JSON cannot call; the message is a reason that can be counted."""


@dataclass(frozen=True)
class FunctionDefinition:
    """A function: its name, and its definition as a tool."""

    name: str
    tool: Mapping[str, Any]

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON schema of its arguments."""
        parameters: Mapping[str, Any] = self.tool["function"]["parameters"]
        return parameters


def mined(source: str) -> tuple[list[FunctionDefinition], dict[str, int]]:
    """The functions of a module, and how many are left out for which reason. Raises ValueError for broken code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("code that does not parse") from error
    found: dict[str, FunctionDefinition] = {}
    left: dict[str, int] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            try:
                found[node.name] = definition(node)  # of the same name the last, as in Python
            except Unsuitable as error:
                found.pop(node.name, None)
                left[str(error)] = left.get(str(error), 0) + 1
    return list(found.values()), left


def definition(node: ast.FunctionDef | ast.AsyncFunctionDef) -> FunctionDefinition:
    """A function as a tool. Raises Unsuitable."""
    documented, given = ast.get_docstring(node), node.args
    if isinstance(node, ast.AsyncFunctionDef):
        raise Unsuitable("asynchronous functions")
    if node.name.startswith("_"):
        raise Unsuitable("private functions")
    if not documented:
        raise Unsuitable("functions without docstring")
    if node.decorator_list or given.vararg or given.kwarg or given.posonlyargs:
        raise Unsuitable("functions that are decorated or take any arguments")
    told = {name: " ".join(text.split()) for name, text in _ARGUMENT.findall(documented)}
    defaults = dict(zip([one.arg for one in given.args][::-1], given.defaults[::-1], strict=False))
    defaults |= {one.arg: value for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value}
    properties = {}
    for one in [*given.args, *given.kwonlyargs]:
        described = {"description": told[one.arg]} if one.arg in told else {}
        properties[one.arg] = _schema(one.annotation, defaults.get(one.arg)) | described
    required = [name for name in properties if name not in defaults]
    parameters = {"type": "object", "properties": properties, "required": required}
    purpose = " ".join(documented.split("\n\n")[0].split())
    function = {"name": node.name, "description": purpose, "parameters": parameters}
    return FunctionDefinition(node.name, {"type": "function", "function": function})


def _schema(annotation: ast.expr | None, default: ast.expr | None) -> dict[str, Any]:
    """The type of an argument by its annotation, or by a default that is a constant."""
    if annotation is not None:
        return _annotated(annotation)
    if isinstance(default, ast.Constant) and type(default.value).__name__ in JSON_TYPES:
        return dict(JSON_TYPES[type(default.value).__name__])
    raise Unsuitable("functions with an argument of no known type")


def _annotated(node: ast.expr) -> dict[str, Any]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return _annotated(ast.parse(node.value, mode="eval").body)
        except SyntaxError as error:
            raise Unsuitable("functions with an argument of no known type") from error
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        sides = [
            side for side in (node.left, node.right) if not (isinstance(side, ast.Constant) and side.value is None)
        ]
        if len(sides) == 1:
            return _annotated(sides[0])
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    if name in JSON_TYPES:
        return dict(JSON_TYPES[name])
    if isinstance(node, ast.Subscript):
        return _subscripted(node)
    raise Unsuitable("functions with an argument of no known type")


def _subscripted(node: ast.Subscript) -> dict[str, Any]:
    outer = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if outer == "Optional":
        return _annotated(node.slice)
    if outer == "Literal" and all(isinstance(one, ast.Constant) for one in inner):
        values = [one.value for one in inner if isinstance(one, ast.Constant)]
        if all(isinstance(value, str) for value in values):
            return {"type": "string", "enum": values}
    schema = JSON_TYPES.get(outer, {})
    if schema.get("type") == "array" and len(inner) == 1:
        return {"type": "array", "items": _annotated(inner[0])}
    if schema.get("type") == "object":
        return dict(schema)
    raise Unsuitable("functions with an argument of no known type")


def problems(name: str, arguments: Mapping[str, Any], known: Sequence[FunctionDefinition]) -> list[str]:
    """What is wrong with a call by the definitions: an unknown function, missing, unknown or mistyped arguments."""
    found = next((one for one in known if one.name == name), None)
    if found is None:
        return [f"there is no function {name}"]
    schemas = found.parameters["properties"]
    wrong = [f"{name}: {one} is missing" for one in found.parameters["required"] if one not in arguments]
    for argument, value in arguments.items():
        if argument not in schemas:
            wrong.append(f"{name}: there is no argument {argument}")
        elif not fits(value, schemas[argument]):
            wrong.append(f"{name}: {argument} is no {schemas[argument]['type']} that is allowed")
    return wrong


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a JSON value is of a schema: type, enum, bounds, items, properties; true is no number.

    An object whose schema has properties has no others.
    """
    if isinstance(value, bool) and schema["type"] != "boolean":
        return False
    if not isinstance(value, PYTHON_TYPES[schema["type"]]) or ("enum" in schema and value not in schema["enum"]):
        return False
    inner: Any = value
    if schema["type"] in ("integer", "number"):
        return bool(schema.get("minimum", inner) <= inner <= schema.get("maximum", inner))
    if "items" in schema:
        return all(fits(one, schema["items"]) for one in inner)
    if any(name not in inner for name in schema.get("required", ())):
        return False
    known = schema.get("properties")
    return not known or all(name in known and fits(one, known[name]) for name, one in inner.items())
