"""Functions as a model defines them: a JSON list of {"name", "description", "parameters", "returns"}, the last two JSON
schemas, with "changes": true where a call changes what others return. Only what can be checked is taken: the keys of
KEYS, types of `definitions`, nothing that refers elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from llama31.synth import labelled
from llama31.synth.tools import definitions, interface
from llama31.synth.tools.definitions import FunctionDefinition
from llama31.tokens import chat

KEYS = ("type", "description", "enum", "items", "properties", "required", "minimum", "maximum", "format", "default")
DEEPEST = 5
_NAME = re.compile(r"[a-z][a-z0-9_]{2,63}")


@dataclass(frozen=True)
class ApiFunction:
    """A function of an API: its definition as a tool, the schema of what it returns, and whether it changes others'."""

    definition: FunctionDefinition
    returns: Mapping[str, Any]
    changes: bool = False

    @property
    def name(self) -> str:
        """Its name."""
        return self.definition.name

    def told(self, returns: bool = False) -> str:
        """As a line of JSON; what it returns and changes is told to who plays the API alone."""
        more = {"returns": self.returns, "changes": self.changes} if returns else {}
        return json.dumps({**self.definition.tool["function"], **more}, ensure_ascii=False)

    def purpose(self) -> str:
        """What it does and takes, for who knows no functions: without its name and those of arguments."""
        parameters = self.definition.parameters
        taken = [
            f"{schema.get('description', name.replace('_', ' '))}"
            f"{'' if name in parameters['required'] else ' (may be left out)'}"
            for name, schema in parameters["properties"].items()
        ]
        return f"- {self.definition.tool['function']['description']} Takes: {'; '.join(taken) or 'nothing'}"


def read(answer: str, least: int, most: int, taken: Collection[str] = ()) -> list[ApiFunction]:
    """The functions of an answer, each with a name of its own that is not `taken`; one at least needs an argument.

    Raises ValueError for anything else.
    """
    given = labelled.json_value(answer)
    if not isinstance(given, list) or not least <= len(given) <= most:
        raise ValueError(f"no list of {least} to {most} functions")
    found = [_function(one) for one in given]
    names = [one.name for one in found]
    if len({*names}) < len(names) or {*names} & {*taken, *chat.BUILTIN}:
        raise ValueError("a name that another function has")
    if not any(one.definition.parameters["required"] for one in found):
        raise ValueError("no function that needs an argument")
    return found


def _function(given: Any) -> ApiFunction:
    if not isinstance(given, dict) or given.keys() - {"changes"} != {"name", "description", "parameters", "returns"}:
        raise ValueError("no function with name, description, parameters and returns")
    if not isinstance(given.get("changes", False), bool):
        raise ValueError("changes that is neither true nor false")
    name, description = given["name"], given["description"]
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(description, str):
        raise ValueError("no name of a function, or no description")
    if not description.strip():
        raise ValueError("an empty description")
    parameters, returns = _schema(given["parameters"], 0), _schema(given["returns"], 0)
    if parameters["type"] != "object" or returns["type"] not in ("object", "array"):
        raise ValueError("parameters that are no object, or a result that is neither object nor array")
    parameters = {"type": "object", "properties": {}, "required": [], **parameters}
    purpose = " ".join(description.split())
    purpose += "" if purpose.endswith((".", "!", "?")) else "."
    function = {"name": name, "description": purpose, "parameters": parameters}
    definition = FunctionDefinition(name, {"type": "function", "function": function})
    return ApiFunction(definition, returns, given.get("changes", False))


def _schema(given: Any, depth: int) -> dict[str, Any]:
    """A schema that `definitions.fits` can check. Raises ValueError."""
    kind = given.get("type") if isinstance(given, dict) else None
    if not isinstance(kind, str) or kind not in definitions.PYTHON_TYPES or depth > DEEPEST:
        raise ValueError("no schema with a type of JSON")
    if strange := given.keys() - set(KEYS):
        raise ValueError(f"a schema with {min(strange)}")
    schema = dict(given)
    if not isinstance(schema.get("description", ""), str) or not isinstance(schema.get("format", ""), str):
        raise ValueError("a description or format that is no text")
    for name, of in (("items", "array"), ("properties", "object"), ("required", "object")):
        if name in schema and kind != of:
            raise ValueError(f"{name} of a schema of type {kind}")
    if "items" in schema:
        schema["items"] = _schema(schema["items"], depth + 1)
    _members(schema, depth)
    _values(schema)
    return schema


def _members(schema: dict[str, Any], depth: int) -> None:
    """See that properties are schemas, and that those that are required are there. Raises ValueError."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise ValueError("properties that are no object, or required that is no list")
    if properties:
        schema["properties"] = {name: _schema(one, depth + 1) for name, one in properties.items()}
    if any(name not in [*properties] for name in required):
        raise ValueError("an argument that is required and not defined")


def _values(schema: Mapping[str, Any]) -> None:
    """See that bounds and allowed values are of the schema's type. Raises ValueError."""
    number = schema["type"] in ("integer", "number")
    for bound in ("minimum", "maximum"):
        if bound in schema and not (number and definitions.fits(schema[bound], {"type": "number"})):
            raise ValueError(f"a {bound} that is no number, or of none")
    allowed = schema.get("enum", [None])
    if not isinstance(allowed, list) or not allowed:
        raise ValueError("an enum without values")
    bare = {name: one for name, one in schema.items() if name != "enum"}
    if "enum" in schema and not all(definitions.fits(one, bare) for one in allowed):
        raise ValueError("an enum with values of another type")


def response(answer: str, returns: Mapping[str, Any]) -> str:
    """What an API said, as one line of JSON that keeps to the schema. Raises ValueError."""
    value = labelled.json_value(answer)
    if not definitions.fits(value, returns):
        raise ValueError("no result of the schema")
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > interface.MOST_CHARACTERS:
        raise ValueError(f"a result of more than {interface.MOST_CHARACTERS} characters")
    return text
