"""JSON schemas as templates of answers: braces, names and commas are given, and the model fills
what is left, so that every answer parses and is valid.

Every property is said. What JSON Schema leaves open has a bound here: a string STRING_TOKENS tokens
(`x-tokens` for another number), a list MAX_ITEMS items, an integer six digits, a number two places
or as many as tell a hundred numbers apart. A keyword that is not understood is refused by name.
Longer than a module should be: one builder, a method for each type.
Source of the keywords: JSON Schema 2020-12, validation vocabulary.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any
from urllib.parse import unquote

from medv_ray.data.canvas import (
    MAX_CHARACTERS,
    MAX_CHOICES,
    MAX_DIGITS,
    MAX_PARTS,
    Choice,
    Number,
    Part,
    Template,
    Words,
    characters,
    whole_number,
)
from medv_ray.data.decimals import Decimals
from medv_ray.errors import DataError

STRING_TOKENS = 16
MAX_ITEMS = 4
UNBOUNDED = 999_999
LARGEST = Decimal(10**MAX_DIGITS - 1)
MAX_DEPTH = 32
UNKNOWN = "is not understood here; take it out, or ask for text"
_written = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes one for each call
_SAYS_NOTHING = {
    "$anchor", "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated",
    "description", "examples", "readOnly", "title", "writeOnly",
}  # fmt: skip
_ASKS_FOR_NOTHING = {"minProperties": "0", "uniqueItems": "false"}
_OF_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "x-tokens"},
    "integer": _OF_NUMBERS,
    "number": _OF_NUMBERS,
    "boolean": set(),
    "null": set(),
}


def template_of(schema: Any) -> Template:
    """Raises DataError E1309 that names the place and the keyword that cannot be had."""
    try:
        json.dumps(schema, allow_nan=False)
    except ValueError:
        raise _refused("#", "holds a number that is none in JSON") from None
    except RecursionError:
        raise _refused("#", f"is nested over {MAX_DEPTH} deep") from None
    builder = _Builder(schema)
    builder.value(schema, "", "#", False, ())
    if all(isinstance(part, str) for part in builder.parts):
        raise _refused("#", "has no blank: it takes one value alone")
    return Template(tuple(_named_once(builder.parts)), is_json=True)


def _named_once(parts: Sequence[Part]) -> Iterator[Part]:
    """Blanks whose names differ: a property `a.b` has the name of `b` in `a`."""
    own = {part.name for part in parts if not isinstance(part, str)}
    seen: Counter[str] = Counter()
    for part in parts:
        if not isinstance(part, str) and part.name:
            name = part.name
            seen[name] += 1
            while seen[name] > 1 and f"{name}#{seen[name]}" in own:  # a property's own name
                seen[name] += 1
            if seen[name] > 1:
                part = replace(part, name=f"{name}#{seen[name]}")
        yield part


def template_of_text(text: str) -> Template:
    """A form as a file holds it: a JSON schema where it is an object of JSON, else a template.
    Raises DataError E1309."""
    schema = None
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:  # its text holds nothing of the file
        if text.lstrip().startswith("{") and "{{" not in text:
            rule = f"{error.msg} (line {error.lineno}, column {error.colno})"
            raise DataError("E1309", f"it has no blank, and is no JSON: {rule}.") from None
    except (ValueError, RecursionError):
        pass
    if isinstance(schema, dict):
        return template_of(schema)
    return Template.parse(text.removesuffix("\n").removesuffix("\r"))


class _Builder:
    """Parts of a template, in their order."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self.parts: list[Part] = []
        self._depth = 0
        self._characters = 0
        """Of the texts and choices so far."""
        self._sealed = 0
        """Parts before this one end where something is left out: no text joins them."""

    def text(self, text: str) -> None:
        """Add literal text."""
        if not text:
            return
        self._characters += len(text)
        if len(self.parts) > self._sealed and isinstance(self.parts[-1], str):
            self.parts[-1] += text
        else:
            self.parts.append(text)

    def value(self, schema: Any, name: str, place: str, null: bool, above: tuple[str, ...]) -> None:
        """Add a value.

        Args:
            name: of its blank.
            place: in the schema, for errors.
            null: it may be null as well.
            above: references that led here.
        """
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refused(place, f"is nested over {MAX_DEPTH} deep")
        if len(self.parts) > MAX_PARTS:  # references can make a large one of few lines
            raise _refused(place, f"has over {MAX_PARTS} parts up to here")
        if self._characters > MAX_CHARACTERS:
            rule = f"has over {MAX_CHARACTERS} characters of texts and choices up to here"
            raise _refused(place, rule)
        self._add(schema, name, place, null, above)
        self._depth -= 1

    def _add(self, schema: Any, name: str, place: str, null: bool, above: tuple[str, ...]) -> None:
        schema, place, above = self._resolved(schema, place, above)
        found, left, null = self._split(schema, place, null, above)
        if found or left is None:
            self._choose(name, [*found, *([None] if null else [])], place)
            return
        kind = left["type"]
        add = {"object": self._object, "array": self._array, "string": self._string}.get(kind)
        if add is None:
            self._number(left, name, place, null)
        else:
            add(left, name, place, null, above)

    def _resolved(
        self, schema: Any, place: str, above: tuple[str, ...]
    ) -> tuple[dict[str, Any], str, tuple[str, ...]]:
        """The schema that is meant, behind references and `allOf` of one."""
        while True:
            if not isinstance(schema, dict):
                raise _refused(place, "an object with a type, enum, const, anyOf or $ref is needed")
            rest = _said(schema)
            if (
                rest == {"allOf"}
                and isinstance(schema["allOf"], list)
                and len(schema["allOf"]) == 1
            ):
                schema, place = schema["allOf"][0], f"{place}/allOf/0"
            elif "$ref" in rest:
                _only(schema, {"$ref"}, place, "stands beside $ref")
                target = schema["$ref"]
                if target in above:
                    raise _refused(place, "leads back to itself", "$ref")
                schema, above = self._target(target, place), (*above, target)
            else:
                return schema, place, above

    def _target(self, reference: Any, place: str) -> Any:
        if not isinstance(reference, str) or not (reference + "/").startswith("#/"):
            raise _refused(place, "must begin with #/ and stay in the schema", "$ref")
        found = self._root
        for step in reference.split("/")[1:]:
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list):
                found = {str(number): one for number, one in enumerate(found)}
            if not isinstance(found, dict) or step not in found:
                raise _refused(place, "leads to nothing", "$ref")
            found = found[step]
        return found

    def _split(
        self, schema: dict[str, Any], place: str, null: bool, above: tuple[str, ...]
    ) -> tuple[list[Any], dict[str, Any] | None, bool]:
        """A schema as the values that it names, what is left of it with one type, and whether null
        is among them."""
        for word in ("const", "enum"):
            if word in schema:
                _only(schema, {word, "type"}, place, f"stands beside {word}")
                named = [schema[word]] if word == "const" else schema[word]
                if not isinstance(named, list) or not named:
                    raise _refused(place, "needs values", word)
                kinds = _types(schema, place) if "type" in schema else None
                named = [one for one in named if kinds is None or _is_one_of(one, kinds)]
                if not named:
                    raise _refused(place, "has no value of its type", word)
                return named, None, null
        several = next((word for word in ("anyOf", "oneOf") if word in schema), None)
        if several is None:
            _only(schema, {"type"}.union(*_KEYWORDS.values()), place)
            kinds = _types(schema, place)
            if len(kinds) == 1 and kinds[0] not in ("boolean", "null"):
                _only(schema, {"type", *_KEYWORDS[kinds[0]]}, place)
                return [], {**schema, "type": kinds[0]}, null
            shared = {key: one for key, one in schema.items() if key != "type"}
            variants: Sequence[Any] = [
                {"type": kind} | {k: v for k, v in shared.items() if k in _KEYWORDS[kind]}
                for kind in kinds
            ]
            _only(schema, {"type", *(k for kind in kinds for k in _KEYWORDS[kind])}, place)
            if len(kinds) == 1:
                return (
                    ([True, False] if kinds == ["boolean"] else []),
                    None,
                    null or kinds == ["null"],
                )
        else:
            _only(schema, {several}, place, f"stands beside {several}")
            variants = schema[several]
            if not isinstance(variants, list) or not variants:
                raise _refused(place, "needs variants", several)
        found, left, taken = [], None, set[str]()
        for number, variant in enumerate(variants):
            inner = place if several is None else f"{place}/{several}/{number}"
            one, inner, over = self._resolved(variant, inner, above)
            named, kept, is_null = self._split(one, inner, False, over)
            values = {_alike(value) for value in (*named, *([None] if is_null else []))}
            if several == "oneOf" and values & taken:
                raise _refused(place, "two of its variants take the same value", several)
            taken |= values
            null = null or is_null
            found += named
            if sum((bool(found), left is not None, kept is not None)) > 1:
                rule = "takes several named values, or one other kind, and null beside either"
                raise _refused(place, rule, several or "type")
            left = left if kept is None else kept
        return found, left, null

    def _choose(self, name: str, values: list[Any], place: str) -> None:
        """Add one of some values."""
        by_text = {_written(value): value for value in values}
        if len(by_text) > MAX_CHOICES:
            raise _refused(place, f"has {len(by_text)} values; the limit is {MAX_CHOICES}", "enum")
        if len(by_text) == 1:
            self.text(next(iter(by_text)))
        else:
            self.parts.append(Choice(name or "value", tuple(by_text), (), tuple(by_text.values())))
            self._characters += characters(self.parts[-1])

    def _open(self, first: str, null: bool, *others: str) -> int | None:
        """Add the beginning of a value, or what may stand in the value's place; where that is."""
        texts = (first, *others, *(["null"] if null else []))
        if len(texts) == 1:
            self.text(first)
            return None
        self.parts.append(Choice("", texts))
        return len(self.parts) - 1

    def _close(self, *begun: int | None) -> None:
        """End what some choices leave out with all texts but their first."""
        for at in begun:
            if at is None:
                continue
            choice = self.parts[at]
            assert isinstance(choice, Choice), "as _open has left it"
            rest = len(self.parts) - at - 1
            skips = (0, *[rest] * (len(choice.texts) - 1))
            self.parts[at] = replace(choice, skips=skips)
            self._sealed = len(self.parts)

    def _object(
        self, schema: dict[str, Any], name: str, place: str, null: bool, above: tuple[str, ...]
    ) -> None:
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            raise _refused(place, "must be an object", "properties")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
            raise _refused(place, "must be a list of names", "required")
        if not {*required} <= properties.keys():
            raise _refused(place, "names a property that is not described", "required")
        if not properties and schema.get("additionalProperties", False) is not False:
            rule = "asks for names of the model's own; give the names in properties"
            raise _refused(place, rule, "additionalProperties")
        begun = self._open("{", null)
        for number, (key, one) in enumerate(properties.items()):
            self.text((", " if number else "") + _written(key) + ": ")
            inner = f"{name}.{key}" if name else key
            self.value(one, inner, f"{place}/properties/{key}", False, above)
        self.text("}")
        self._close(begun)

    def _array(
        self, schema: dict[str, Any], name: str, place: str, null: bool, above: tuple[str, ...]
    ) -> None:
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise _refused(place, "must be a list", "prefixItems")
        if not first and "items" not in schema:
            raise _refused(place, "says what stands in the list, and is missing", "items")
        more = schema.get("items", False)
        low = _size(schema, "minItems", 0, place)
        high = _size(schema, "maxItems", max(low, MAX_ITEMS, len(first)), place)
        high = min(high, len(first)) if more is False else high
        if first and "minItems" not in schema:
            low = high  # a tuple is said whole
        if low > high:
            raise _refused(place, "over maxItems, or over what is described", "minItems")
        if not high:
            self._choose(name, [[], *([None] if null else [])], place)
            return
        begun = [self._open("[", null, *(["[]"] if not low else []))]
        for number in range(high):
            if number:
                begun.append(self._open(", ", False, *(["]"] if number >= low else [])))
            inside = number < len(first)
            one, step = (first[number], "prefixItems") if inside else (more, "items")
            self.value(one, f"{name or 'value'}[{number}]", f"{place}/{step}", False, above)
        self.text("]")
        self._close(*begun)

    def _string(
        self, schema: dict[str, Any], name: str, place: str, null: bool, above: tuple[str, ...]
    ) -> None:
        least = _size(schema, "minLength", 0, place)
        longest = _size(schema, "maxLength", None, place)
        most = _size(schema, "x-tokens", max(STRING_TOKENS, least), place)
        if longest is not None:
            most = min(most, longest)
        if least > most:
            raise _refused(
                place, f"over maxLength, or over its {most} tokens (x-tokens)", "minLength"
            )
        if not most:
            self._choose(name, ["", *([None] if null else [])], place)
            return
        begun = self._open('"', null)
        self.parts.append(Words(name or "value", least, most, True, longest))
        self.text('"')
        self._close(begun)

    def _number(self, schema: dict[str, Any], name: str, place: str, null: bool) -> None:
        whole, step = schema["type"] == "integer", schema.get("multipleOf")
        if not all(_is_number(schema[word]) for word in _OF_NUMBERS & schema.keys()):
            raise _refused(place, "has a bound that is no number")
        low, high = _bounds(schema, place)
        places = 0 if whole or step is not None else 2
        while 2 <= places < 9 and (high - low) * 10**places < 100:
            places += 1
        while places and max(abs(low), abs(high)) * 10**places >= 10**MAX_DIGITS:
            places -= 1
        unit = Decimal(1).scaleb(-places)
        first = int((low / unit).to_integral_value(ROUND_CEILING))
        last = int((high / unit).to_integral_value(ROUND_FLOOR))
        first += "exclusiveMinimum" in schema and first * unit <= _decimal(
            schema["exclusiveMinimum"]
        )
        last -= "exclusiveMaximum" in schema and last * unit >= _decimal(schema["exclusiveMaximum"])
        if low > high:
            raise _refused(place, "lies below its minimum", "maximum")
        if first > last:
            raise _refused(place, f"has no number of {places} places within its bounds")
        if step is not None:
            self._multiples(step, first, last, name, place, null)
        elif first == last:
            value = json.loads(Decimals(first, last, places).text(first))
            self._choose(name, [value, *([None] if null else [])], place)
        else:
            blank = whole_number(name or "value", first, last)
            if places:
                blank = Number(name or "value", Decimals(first, last, places))
            if isinstance(blank, Choice):
                self._choose(name, [*blank.values, *([None] if null else [])], place)
                return
            begun = self._open("", null)
            self.parts.append(blank)
            self._close(begun)

    def _multiples(
        self, step: float, first: int, last: int, name: str, place: str, null: bool
    ) -> None:
        if step != int(step) or step < 1:
            raise _refused(place, "must be a whole number", "multipleOf")
        values = range(-(-first // int(step)) * int(step), last + 1, int(step))
        if not values:
            raise _refused(place, "has no multiple within the bounds", "multipleOf")
        if len(values) > MAX_CHOICES:
            rule = f"leaves {len(values)} values; the limit is {MAX_CHOICES}"
            raise _refused(place, rule, "multipleOf")
        self._choose(name, [*values, *([None] if null else [])], place)


def _refused(place: str, rule: str, word: str = "") -> DataError:
    where = f"{place}/{word}" if word else place
    named = "".join(mark if mark.isprintable() else "?" for mark in where[:200])
    return DataError("E1309", f"the schema at {named}: {rule}.")


def _only(schema: Mapping[str, Any], known: set[str], place: str, rule: str = UNKNOWN) -> None:
    for word in sorted(_said(schema) - known):
        raise _refused(place, rule, str(word))


def _said(schema: Mapping[str, Any]) -> set[str]:
    """Keywords that ask for something."""
    neutral = {
        word
        for word, value in _ASKS_FOR_NOTHING.items()
        if word in schema and _alike(schema[word]) == value
    }
    return {*schema} - _SAYS_NOTHING - neutral


def _types(schema: Mapping[str, Any], place: str) -> list[str]:
    given = schema.get("type", "object" if "properties" in schema else None)
    kinds = given if isinstance(given, list) else [given]
    if given is None and "type" not in schema:
        raise _refused(place, f"is missing; one of {', '.join(_KEYWORDS)} is needed", "type")
    if not kinds or not all(isinstance(kind, str) and kind in _KEYWORDS for kind in kinds):
        raise _refused(place, f"must be one of {', '.join(_KEYWORDS)}", "type")
    return kinds


def _is_one_of(value: Any, kinds: Sequence[str]) -> bool:
    found = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "integer": _is_number(value) and value == int(value),
        "number": _is_number(value),
    }
    return any(found[kind] for kind in kinds)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _alike(value: Any) -> str:
    """The same text for values that are equal in JSON, as 1 and 1.0 are."""
    whole = json.loads(json.dumps(value), parse_float=_number_of)
    return json.dumps(whole, sort_keys=True)


def _number_of(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _size(schema: Mapping[str, Any], word: str, default: Any, place: str) -> Any:
    if word not in schema:
        return default
    found = schema[word]
    if not _is_number(found) or not 0 <= found < 10**6 or found != int(found):
        raise _refused(place, "must be a whole number from 0 on", word)
    return int(found)


def _decimal(value: float) -> Decimal:
    return Decimal(repr(value))


def _bounds(schema: Mapping[str, Any], place: str) -> tuple[Decimal, Decimal]:
    """Lowest and highest value, exclusive bounds included."""
    lows = [_decimal(schema[w]) for w in ("minimum", "exclusiveMinimum") if w in schema]
    highs = [_decimal(schema[w]) for w in ("maximum", "exclusiveMaximum") if w in schema]
    for bound in (*lows, *highs):
        if not bound.is_finite() or abs(bound) >= 10**MAX_DIGITS:
            raise _refused(place, f"has a bound of over {MAX_DIGITS} digits")
    low, high = max(lows, default=None), min(highs, default=None)
    if low is None:
        low = Decimal(-UNBOUNDED) if high is None else min(Decimal(-UNBOUNDED), high - UNBOUNDED)
        low = max(low, -LARGEST)
    if high is None:
        high = min(max(Decimal(UNBOUNDED), low + UNBOUNDED), LARGEST)
    return low, high
