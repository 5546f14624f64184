"""What the answer's text must look like: OpenAI's `response_format` and vLLM's `structured_outputs`.

Invariant: a body that passes validation asks for at most one format.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, model_validator
from pydantic_core import PydanticCustomError

from services.gateway.bodies.body import Body, ShortText, blame
from services.gateway.formats import structured
from services.gateway.http.json_reader import MAX_DEPTH, MAX_KEYS, is_kept
from shared.protocol.messages import MAX_GRAMMAR_CHARACTERS

MAX_CHOICES = 1024  # strings to choose from
MAX_TAGS = 64

GrammarText = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)]


def _as_schema(value: Any) -> Any:
    """One error, whatever is wrong inside: the compiler names it."""
    if not isinstance(value, dict | bool):
        raise PydanticCustomError("schema", "must be a JSON Schema: an object, true or false")
    return check_kept(value)


def check_kept(value: Any) -> Any:
    """A schema of which nothing was cut off when it was read."""
    if not is_kept(value):
        limits = {"keys": MAX_KEYS, "depth": MAX_DEPTH}
        raise PydanticCustomError("schema", "must have objects of at most {keys} keys, at most {depth} deep", limits)
    return value


Schema = Annotated[dict[str, Any] | bool, BeforeValidator(_as_schema, dict[str, Any] | bool)]


class Format(Body):
    """schema_of_answer: of an answer in JSON; None: it is not."""

    @property
    def schema_of_answer(self) -> dict[str, Any] | bool | None:
        return None


class TextFormat(Format):
    type: Literal["text"]

    @property
    def grammar(self) -> None:
        return None


class JsonObjectFormat(Format):
    type: Literal["json_object"]

    @property
    def schema_of_answer(self) -> dict[str, Any]:
        return structured.JSON_OBJECT

    @property
    def grammar(self) -> str:
        return structured.of_json_schema(self.schema_of_answer)


class NamedSchema(Body):
    """The schema is kept strictly, whatever `strict` says."""

    name: ShortText | None = None
    description: str | None = None
    json_schema: Schema = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Format):
    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def schema_of_answer(self) -> dict[str, Any] | bool:
        return self.json_schema.json_schema

    @property
    def grammar(self) -> str:
        return structured.of_json_schema(self.schema_of_answer)


class Tag(Body):
    begin: GrammarText
    json_schema: Schema = Field(alias="schema")
    end: Annotated[str, Field(max_length=MAX_GRAMMAR_CHARACTERS)] = ""


class TagFormat(Format):
    """vLLM's: text in which each trigger begins a tag with JSON inside."""

    type: Literal["structural_tag"]
    structures: list[Tag] = Field(min_length=1, max_length=MAX_TAGS, fail_fast=True)
    triggers: list[GrammarText] = Field(min_length=1, max_length=MAX_TAGS, fail_fast=True)

    @model_validator(mode="after")
    def _each_tag_has_a_trigger(self) -> Self:
        for tag in self.structures:
            if not any(tag.begin.startswith(trigger) for trigger in self.triggers):
                raise blame("structures", "each begin must start with one of the triggers")
        ordered = sorted(set(self.triggers))
        if any(second.startswith(first) for first, second in pairwise(ordered)):
            raise blame("triggers", "no trigger may be the beginning of another one")
        return self

    @property
    def grammar(self) -> str:
        return structured.of_tags([self._tag(each) for each in self.structures])

    def _tag(self, tag: Tag) -> structured.Tag:
        trigger = next(trigger for trigger in self.triggers if tag.begin.startswith(trigger))
        return structured.Tag(trigger, tag.begin, tag.json_schema, tag.end)


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat | TagFormat, Discriminator("type")]


class StructuredOutputs(Format):
    """vLLM's field; exactly one entry that is not null."""

    choice: Annotated[list[GrammarText], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)] | None = None
    ebnf: GrammarText | None = Field(default=None, alias="grammar")
    json_object: Literal[True] | None = None
    json_schema: Schema | None = Field(default=None, alias="json")
    regex: GrammarText | None = None
    structural_tag: TagFormat | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if sum(getattr(self, name) is not None for name in self.model_fields_set) != 1:
            message = "must have exactly one of choice, grammar, json, json_object, regex and structural_tag"
            raise PydanticCustomError("one", message)
        return self

    @property
    def schema_of_answer(self) -> dict[str, Any] | bool | None:
        return self.json_schema if self.json_object is None else structured.JSON_OBJECT

    @property
    def grammar(self) -> str:
        if self.schema_of_answer is not None:
            return structured.of_json_schema(self.schema_of_answer)
        if self.regex is not None:
            return structured.of_regex(self.regex)
        if self.choice is not None:
            return structured.of_choice(self.choice)
        if self.structural_tag is not None:
            return self.structural_tag.grammar
        assert self.ebnf is not None
        return structured.of_ebnf(self.ebnf)
