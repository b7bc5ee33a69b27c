"""JSON schemas as templates: every way to fill one is a valid value, and what is not understood is
refused by name."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from medv_ray.data.canvas import Choice, Number, Template, Words, shown
from medv_ray.data.decimals import Decimals
from medv_ray.data.json_schema import template_of, template_of_text
from medv_ray.errors import DataError


def filled(template: Template, draw: random.Random) -> str:
    """A template filled at random, without any model."""
    text, skip = "", 0
    for part in template.parts:
        if skip:
            skip -= 1
        elif isinstance(part, str):
            text += part
        elif isinstance(part, Words):
            count = draw.randint(part.least, part.most)
            text += shown(
                part, "".join(draw.choice(' "\\\nz\u00e9\U0001f600') for _ in range(count))
            )
        elif isinstance(part, Choice):
            number = draw.randrange(len(part.texts))
            text += part.texts[number]
            skip = part.skips[number] if part.skips else 0
        else:
            begun = ""
            while mark := draw.choice(part.bounds.next(begun)):
                begun += mark
            text += begun
    return text


KEYS = st.text(max_size=4)
SMALL = st.integers(-20, 20)


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["integer", "number"]))
    low = draw(SMALL if kind == "integer" else st.floats(-30, 30, width=16))
    found: dict[str, Any] = {"type": kind}
    if draw(st.booleans()):
        found[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(st.booleans()):
        found[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = low + draw(
            st.integers(2, 3000)
        )
    return found


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    low = draw(st.integers(0, 4))
    found: dict[str, Any] = {"type": "string", "minLength": low}
    if draw(st.booleans()):
        found["maxLength"] = low + draw(st.integers(0, 6))
    return found


VALUES = st.none() | st.booleans() | SMALL | KEYS | st.lists(SMALL, max_size=2)
LEAVES = st.one_of(
    numbers(),
    strings(),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"type": ["integer", "null"], "minimum": 0}),
    st.just({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}),
    st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
)


@st.composite
def lists(draw: st.DrawFn, items: st.SearchStrategy[Any]) -> dict[str, Any]:
    low = draw(st.integers(0, 2))
    found = {"type": "array", "items": draw(items), "minItems": low}
    if draw(st.booleans()):
        found["maxItems"] = low + draw(st.integers(0, 2))
    return found


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        lists(inner),
        st.dictionaries(KEYS, inner, max_size=3).map(
            lambda found: {
                "type": "object",
                "properties": found,
                "required": [*found],
                "additionalProperties": False,
            }
        ),
        inner.map(lambda one: {"anyOf": [one, {"type": "null"}]}),
        inner.map(lambda one: {"type": "array", "prefixItems": [one, one]}),
    ),
    max_leaves=6,
)


def parts_of(schema: Any) -> Template | None:
    """None for a schema of one value alone, which has no blank."""
    try:
        return template_of(schema)
    except DataError as error:
        if "has no blank" in error.detail or "takes several named values" in error.detail:
            return None
        raise


@given(SCHEMAS, st.randoms(use_true_random=False))
def test_every_way_to_fill_it_is_valid(schema: Any, draw: random.Random) -> None:
    template = parts_of(schema)
    if template is None:
        return
    for _ in range(5):
        value = json.loads(filled(template, draw))
        Draft202012Validator(schema).validate(value)


def test_a_pydantic_model() -> None:
    """Its schema has references, titles, and optional values."""
    from pydantic import BaseModel, Field

    class Finding(BaseModel):
        name: str
        size_mm: int | None = Field(ge=0, le=3)

    class Report(BaseModel):
        """A report."""

        findings: list[Finding] = Field(max_length=2)
        likely: float = Field(ge=0, le=1)
        sure: bool = False

    template = template_of(Report.model_json_schema())
    draw = random.Random(3)
    made = [Report.model_validate_json(filled(template, draw)) for _ in range(50)]
    assert {len(one.findings) for one in made} == {0, 1, 2}
    assert any(f.size_mm is None for one in made for f in one.findings)
    assert any(f.size_mm for one in made for f in one.findings)
    assert template.names[:2] == ["findings[0].name", "findings[0].size_mm"]


AGAIN = {"$ref": "#/$defs/a"}
CYCLE = {"$defs": {"a": {"type": "object", "properties": {"x": AGAIN}}}, **AGAIN}

UNION = "takes several named values, or one other kind, and null beside either."
DICT = {"type": "object", "additionalProperties": {"type": "integer"}}


def deep(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "boolean"}
    for _ in range(levels):
        found = {"type": "array", "items": found, "minItems": 1, "maxItems": 1}
    return found


def doubling(levels: int) -> dict[str, Any]:
    """2 ** levels parts in a few lines."""
    made: dict[str, Any] = {"b0": {"type": "boolean"}}
    for i in range(levels):
        inner = {"$ref": f"#/$defs/b{i}"}
        made[f"b{i + 1}"] = {"type": "object", "properties": {"x": inner, "y": inner}}
    return {"$defs": made, "$ref": f"#/$defs/b{levels}"}


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        (CYCLE, "#/properties/x/$ref: leads back to itself"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"$ref": "#/$defs/none"}, "leads to nothing"),
        ({"$ref": "https://example.org/x.json"}, "must begin with #/"),
        ({"$ref": 5}, "must begin with #/"),
        ({"type": "string", "pattern": "a+"}, "#/pattern: is not understood"),
        ({"type": "string", "format": "date"}, "#/format: is not understood"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a/not: is not"),
        ({"allOf": [{"type": "string"}] * 2}, "#/allOf: is not understood"),
        ({"type": "array", "items": {}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "array"}, "#/items: says what stands"),
        ({"type": "array", "items": True}, "an object with a type"),
        ({}, "#/type: is missing; one of object, array"),
        ({"minimum": 1}, "#/type: is missing; one of"),
        ({"type": None}, "#/type: must be one of"),
        (True, "an object with a type"),
        (None, "an object with a type"),
        ([], "an object with a type"),
        ({"type": "tuple"}, "#/type: must be one of"),
        ({"type": []}, "#/type: must be one of"),
        ({"enum": []}, "#/enum: needs values"),
        ({"enum": "yes"}, "#/enum: needs values"),
        ({"enum": ["a"], "type": "integer"}, "#/enum: has no value of its type"),
        ({"enum": [*range(2000)]}, "#/enum: has 2000 values; the limit is 1000"),
        ({"anyOf": [{"const": 1}, {"const": 2}], "type": "integer"}, "#/type: stands beside anyOf"),
        ({"anyOf": [{"type": "integer"}], "minimum": 1}, "#/minimum: stands beside anyOf"),
        ({"enum": [1, 2], "minimum": 1}, "#/minimum: stands beside enum"),
        ({"$ref": "#/$defs/a", "minimum": 1}, "#/minimum: stands beside $ref"),
        ({"anyOf": []}, "#/anyOf: needs variants"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, f"#/anyOf: {UNION}"),
        ({"anyOf": [{"type": "string"}, {"const": 5}]}, f"#/anyOf: {UNION}"),
        ({"anyOf": [{"const": 5}, {"type": "string"}]}, f"#/anyOf: {UNION}"),
        ({"properties": {"a": {"type": ["string", "integer"]}}}, f"#/properties/a/type: {UNION}"),
        ({"type": ["boolean", "string"]}, f"#/type: {UNION}"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, f"#/oneOf: {UNION}"),
        ({"anyOf": [{"type": "null"}, {"oneOf": [{"type": "integer"}, {"enum": [1, "x"]}]}]},
         f"#/anyOf/1/oneOf: {UNION}"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "#/maximum: lies below"),
        ({"type": "number", "exclusiveMinimum": 1, "maximum": 1}, "#: has no number of 9 places"),
        ({"type": "integer", "minimum": 0.2, "maximum": 0.8}, "#: has no number of 0 places"),
        ({"type": "integer", "minimum": 1e300}, "over 15 digits"),
        ({"type": "integer", "minimum": float("nan")}, "number that is none in JSON"),
        ({"enum": [1.0, float("inf")]}, "number that is none in JSON"),
        ({"type": "integer", "minimum": None}, "a bound that is no number"),
        ({"type": "integer", "multipleOf": None}, "a bound that is no number"),
        ({"type": "integer", "minimum": "1"}, "a bound that is no number"),
        ({"type": "integer", "multipleOf": 0}, "#/multipleOf: must be a whole"),
        ({"type": "number", "multipleOf": 0.01}, "#/multipleOf: must be a whole"),
        ({"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 6}, "no multiple"),
        ({"type": "integer", "multipleOf": 2}, "leaves 999999 values"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "#/minLength: over maxLength"),
        ({"type": "string", "maxLength": -1}, "#/maxLength: must be a whole"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 2}, "#/minItems"),
        ({"type": "object", "properties": []}, "#/properties: must be an object"),
        ({"type": "object", "required": ["a"]}, "#/required: names a property"),
        ({"type": "object", "required": 5}, "#/required: must be a list"),
        (DICT, "#/additionalProperties: asks for names of the model's own"),
        ({**DICT, "additionalProperties": True}, "#/additionalProperties: asks for names"),
        ({"properties": {"a": DICT}}, "#/properties/a/additionalProperties: asks for names"),
        ({"anyOf": [DICT, {"type": "null"}]}, "#/additionalProperties: asks for names"),
        ({"type": "object", "required": None}, "#/required: must be a list"),
        ({"type": "object", "properties": {"a": {}}, "required": "a"}, "#/required: must be"),
        ({"type": "object", "required": [["a"]]}, "#/required: must be a list"),
        ({"type": "array", "items": {"type": "null"}, "maxItems": None}, "#/maxItems: must be"),
        ({"type": "string", "x-tokens": None}, "#/x-tokens: must be a whole"),
        ({"oneOf": [{"enum": [1, 2]}, {"const": 2.0}]}, "#/oneOf: two of its variants"),
        ({"oneOf": [{"type": "boolean"}, {"const": True}]}, "#/oneOf: two of its variants"),
        ({"oneOf": [{"type": ["string", "null"]}, {"type": "null"}]}, "#/oneOf: two of its"),
        ({"const": 5}, "has no blank"),
        (deep(40), "nested over 32 deep"),
        (deep(2000), "nested over 32 deep"),
        (doubling(25), "has over 2000 parts"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(schema: Any, rule: str) -> None:
    with pytest.raises(DataError) as error:
        template_of(schema)
    assert error.value.code == "E1309"
    assert rule in error.value.detail


def test_what_is_said_of_a_schema_anywhere_is_found() -> None:
    """References into lists and with escapes; one value of several variants of anyOf."""
    kinds = {"$defs": {"a b/c": {"anyOf": [{"type": "boolean"}, {"enum": [None, True]}]}}}
    for reference, values in (
        ("#/$defs/a%20b~1c", (True, False, None)),
        ("#/$defs/a b~1c/anyOf/1", (None, True)),
    ):
        [part] = template_of({**kinds, "$ref": reference}).parts
        assert isinstance(part, Choice)
        assert part.values == values


def test_keywords_that_ask_for_nothing_are_taken() -> None:
    some = {"type": "array", "items": {"type": "boolean"}}
    assert template_of({**some, "uniqueItems": False}) == template_of(some)
    one = {"type": "object", "properties": {"a": some}}
    assert template_of({**one, "minProperties": 0}) == template_of(one)
    assert template_of({"$ref": "#/$defs/a", "$defs": {"a": one}, "minProperties": 0.0}).is_json
    for asking in ({**one, "minProperties": 1}, {**some, "uniqueItems": 0}):
        with pytest.raises(DataError, match=r"#/(minProperties|uniqueItems): is not understood"):
            template_of(asking)


def test_a_file_is_a_schema_or_a_template() -> None:
    assert template_of_text('{"type": "boolean"}\n').is_json
    for text in ("{{a:tokens=2}}\n", "{{a:tokens=2}}\r\n", "{{a:tokens=2}}"):
        assert template_of_text(text).parts == (Words("a", 2, 2),)
    assert template_of_text('{"a": {{a:tokens=2}},}').names == ["a"]
    with pytest.raises(DataError, match=r"no JSON: .* \(line \d, column \d+\)"):
        template_of_text('{"type": "boolean",\n}')
    for text in ("[1]", "5", "no blank", '"x"', "[" * 100_000, "9" * 5000):
        with pytest.raises(DataError, match="has no blank"):
            template_of_text(text)


def test_blanks_of_properties_that_share_a_name() -> None:
    yes = {"type": "boolean"}
    inner = {"type": "object", "properties": {"b": yes}}
    schema = {"type": "object", "properties": {"a.b": yes, "a": inner, "": yes, "value": yes}}
    assert template_of(schema).names == ["a.b", "a.b#2", "value", "value#2"]
    schema = {"type": "object", "properties": {"a.b#2": yes, "a": inner, "a.b": yes}}
    assert template_of(schema).names == ["a.b#2", "a.b", "a.b#3"]


@pytest.mark.parametrize(
    ("kind", "bounds", "low", "high", "places"),
    [
        ("integer", {"minimum": 10**15 - 3}, 10**15 - 3, 10**15 - 1, 0),
        ("integer", {"maximum": -(10**15) + 3}, -(10**15) + 1, -(10**15) + 3, 0),
        ("integer", {"minimum": 10**15 - 2000}, 10**15 - 2000, 10**15 - 1, 0),
        ("number", {"minimum": 0, "maximum": 1e13}, 0, 10**14, 1),
        ("number", {"minimum": -1e14, "maximum": 1e14}, -(10**14), 10**14, 0),
        ("number", {"minimum": 1e13, "maximum": 1e13 + 1}, 10**14, 10**14 + 10, 1),
    ],
)
def test_large_bounds_that_are_given_are_kept_to(
    kind: str, bounds: dict[str, float], low: int, high: int, places: int
) -> None:
    [part] = template_of({"type": kind, **bounds}).parts
    if isinstance(part, Choice):
        assert (part.values[0], part.values[-1]) == (low, high)
    else:
        assert isinstance(part, Number)
        assert part.bounds == Decimals(low, high, places)


@pytest.mark.parametrize(
    "items",
    [
        {"type": "integer", "minimum": 0, "maximum": 999},
        {"type": "object", "properties": {"k" * 5000: {"type": "boolean"}}},
    ],
)
def test_a_short_schema_of_much_text_is_refused(items: dict[str, Any]) -> None:
    schema = {"type": "array", "items": items, "maxItems": 900}
    with pytest.raises(DataError, match="#/items.*: has over 1048576 characters"):
        template_of(schema)


def test_numbers_have_bounds_where_the_schema_gives_none() -> None:
    [part] = template_of({"type": "integer"}).parts
    assert isinstance(part, Number)
    assert (part.bounds.low, part.bounds.high) == (-999_999, 999_999)
    [part] = template_of({"type": "number", "minimum": 0.5, "maximum": 0.6}).parts
    assert isinstance(part, Number)
    assert part.bounds.places == 3
