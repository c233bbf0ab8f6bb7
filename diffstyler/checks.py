"""What pydantic finds wrong with a value in; our words for it, with what was expected and what came, out."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_SEED = 2**63 - 1


def in_our_words(problem: ErrorDetails, kind: type) -> str:
    """One problem of a ``kind``, a pydantic model or dataclass: the words of our own errors, else its bounds."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])  # type: ignore[typeddict-item]
    name = next((part for part in reversed(problem["loc"]) if isinstance(part, str)), "")
    got = "nothing" if problem["type"] == "missing" else shown(problem["input"])
    at = problem["loc"][-1] if problem["loc"] else ""
    properties = _properties(kind)
    if name not in properties:
        return f"{problem['msg']}, got {got}"
    return f"expected {_expected(properties[name] if at == name else properties[name]['items'])}, got {got}"


def shown(value: object) -> str:
    """A value as its file writes it, cut to 80 characters."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"


@cache
def _properties(kind: type) -> dict[str, dict]:
    """The JSON schema of each field, by name, of the models inside it too."""
    schema = TypeAdapter(kind).json_schema()
    kinds = [*schema.get("$defs", {}).values(), schema]
    return {name: _resolved(value, schema) for one in kinds for name, value in one["properties"].items()}


def _resolved(value: dict, schema: dict) -> dict:
    """Without references and without the "or null" of what need not be given."""
    value = value.get("anyOf", [value])[0]
    if "$ref" in value:
        return schema["$defs"][value["$ref"].rsplit("/", 1)[-1]]
    return {**value, "items": _resolved(value["items"], schema)} if "items" in value else value


def _expected(schema: dict) -> str:
    if "required" in schema:
        return f"an object with a {' and a '.join(schema['required'])}"
    if "description" in schema:
        return schema["description"]
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if schema["type"] == "string":
        return "a path" if schema.get("format") == "path" else "text"
    noun = f"a multiple of {schema['multipleOf']}" if "multipleOf" in schema else _NOUNS[schema["type"]]
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = {
        f" in {low} … {'2^63-1' if high == MAX_SEED else high}": None not in (low, high),
        f" of at least {low}": low is not None,
        f" above {schema.get('exclusiveMinimum')}": "exclusiveMinimum" in schema,
    }
    below = f", below {schema['exclusiveMaximum']}" if "exclusiveMaximum" in schema else ""
    return noun + next((text for text, holds in bounds.items() if holds), "") + below


_NOUNS = {"number": "a number", "integer": "an integer", "array": "a list of one or more", "boolean": "true or false"}
