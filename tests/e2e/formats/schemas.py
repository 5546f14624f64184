"""200 JSON schemas of growing difficulty, over the keywords that llguidance claims to know.

Invariant: the schemas depend on nothing but their number, and each has a shortest answer well below 200 tokens.
"""

from __future__ import annotations

import random
from typing import Any, TypeAlias

from shared.protocol.messages import Sampling

Schema: TypeAlias = dict[str, Any]

CITY: Schema = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "population": {"type": "integer", "minimum": 0, "maximum": 99999999},
        "rivers": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 3},
        "capital": {"type": "boolean"},
    },
    "required": ["city", "population", "rivers", "capital"],
    "additionalProperties": False,
}
SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(1.0, seed=7),
    "penalised": Sampling(0.8, top_p=0.9, seed=8, repetition_penalty=1.2, presence_penalty=0.5),
}
NAMES = ("name", "age", "city", "price", "tags", "id", "active", "notes", "kind", "size", "owner", "date")
WORDS = ("red", "green", "blue", "small", "large", "open", "closed", "north", "south", "yes", "no", "maybe")
# Of times, libraries disagree on leap seconds.
FORMATS = ("date", "duration", "email", "hostname", "ipv4", "uuid", "uri")
PATTERNS = ("^[a-z]{2,6}$", "^[A-Z][a-z]{1,8}$", "^[0-9]{3}-[0-9]{4}$", "^(yes|no)$", "^#[0-9a-f]{6}$", "^v[0-9]{1,2}$")


def number(rng: random.Random) -> Schema:
    low = rng.randrange(-50, 50)
    return rng.choice(
        [
            {"type": "integer", "minimum": low, "maximum": low + rng.randrange(1, 1000)},
            {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": rng.randrange(5, 500)},
            {"type": "integer", "minimum": 0, "maximum": 120, "multipleOf": rng.choice([2, 5, 10])},
            {"type": "number", "minimum": 0, "maximum": rng.randrange(1, 100), "multipleOf": 0.5},
        ]
    )


def text(rng: random.Random) -> Schema:
    return rng.choice(
        [
            {"type": "string", "maxLength": rng.randrange(3, 16)},
            {"type": "string", "minLength": 2, "maxLength": rng.randrange(4, 12)},
            {"type": "string", "pattern": rng.choice(PATTERNS)},
        ]
    )


def fixed(rng: random.Random) -> Schema:
    return rng.choice(
        [
            {"enum": rng.sample(WORDS, rng.randrange(2, 6))},
            {"const": rng.choice(WORDS)},
            {"enum": [1, "one", None, True]},
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["boolean", "null"]},
        ]
    )


def scalar(rng: random.Random) -> Schema:
    return rng.choice([number, text, fixed])(rng)


def formatted(rng: random.Random) -> Schema:
    return {"type": "string", "format": rng.choice(FORMATS), "maxLength": 40}


def array(rng: random.Random, items: Schema) -> Schema:
    least = rng.randrange(0, 2)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + rng.randrange(1, 3)}


def tuple_of(rng: random.Random) -> Schema:
    return {"type": "array", "prefixItems": [scalar(rng), scalar(rng)], "items": False, "minItems": 2}


def record(rng: random.Random, parts: dict[str, Schema], *, all_required: bool = True) -> Schema:
    names = list(parts)
    required = names if all_required else sorted(rng.sample(names, max(1, len(names) // 2)))
    return {"type": "object", "properties": parts, "required": required, "additionalProperties": False}


def named(rng: random.Random, number_of: int, part: Any) -> dict[str, Schema]:
    return {name: part(rng) for name in rng.sample(NAMES, number_of)}


def level_0(rng: random.Random) -> Schema:
    return scalar(rng)


def level_1(rng: random.Random) -> Schema:
    return record(rng, named(rng, rng.randrange(1, 4), scalar))


def level_2(rng: random.Random) -> Schema:
    return record(rng, named(rng, rng.randrange(2, 5), scalar), all_required=False)


def level_3(rng: random.Random) -> Schema:
    return record(rng, {"list": array(rng, scalar(rng)), "pair": tuple_of(rng), **named(rng, 1, scalar)})


def level_4(rng: random.Random) -> Schema:
    inner = record(rng, named(rng, 2, scalar))
    return record(rng, {"inner": inner, "more": array(rng, record(rng, named(rng, 1, scalar)))})


def level_5(rng: random.Random) -> Schema:
    one, other = level_1(rng), {"type": "string", "maxLength": 8}
    return record(rng, {"either": {"anyOf": [one, other]}, "id": {"oneOf": [{"type": "null"}, number(rng)]}})


def level_6(rng: random.Random) -> Schema:
    shared = {"point": record(rng, {"x": number(rng), "y": number(rng)}), "word": fixed(rng)}
    parts = {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}, "how": {"$ref": "#/$defs/word"}}
    return {"$defs": shared, **record(rng, parts)}


def level_7(rng: random.Random) -> Schema:
    return record(rng, {name: formatted(rng) for name in rng.sample(NAMES, 2)})


def level_8(rng: random.Random) -> Schema:
    parts = [record_part(rng, "a"), record_part(rng, "b")]
    return {"allOf": parts}


def record_part(rng: random.Random, name: str) -> Schema:
    others: dict[str, Schema] = {"a": {}, "b": {}, name: number(rng)}
    return {"type": "object", "properties": others, "required": [name], "additionalProperties": False}


def level_9(rng: random.Random) -> Schema:
    leaf = record(rng, {"value": number(rng), "next": {"type": "null"}})
    chain = record(rng, {"value": number(rng), "next": {"anyOf": [leaf, {"type": "null"}]}})
    labels = {"type": "object", "patternProperties": {"^[a-z]{1,4}$": number(rng)}, "maxProperties": 2}
    return record(rng, {"chain": chain, "labels": {**labels, "additionalProperties": False}, "kind": fixed(rng)})


LEVELS = (level_0, level_1, level_2, level_3, level_4, level_5, level_6, level_7, level_8, level_9)
SCHEMAS: list[Schema] = [LEVELS[i // 20](random.Random(i)) for i in range(200)]
