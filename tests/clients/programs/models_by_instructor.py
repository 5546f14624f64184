"""instructor makes objects of a pydantic model in each of its ways, whole and piece by piece. argv: URL, model."""

import json
import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field

MODES = (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA)


class River(BaseModel):
    model_config = ConfigDict(extra="forbid")  # else the model may add properties without end

    name: Literal["Danube", "Rhine", "Seine", "Tiber"]
    length_km: int = Field(ge=100, le=3000)
    is_navigable: bool


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    rivers: list[River] = Field(min_length=1, max_length=2)


def main(url: str, model: str) -> None:
    made = {}
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for mode in MODES:
            asked = {
                "model": model,
                "messages": [{"role": "user", "content": "Tell me about Vienna and its rivers."}],
                "temperature": 0.7,
                "seed": 5,
                "max_tokens": 256,
                "response_model": City,
                "max_retries": 0,
            }
            patched = instructor.from_openai(client, mode=mode)
            city, completion = patched.create_with_completion(**asked)
            assert completion.usage.completion_tokens > 0, completion
            asked.pop("max_retries")
            *_, last = patched.create_partial(**asked)
            assert last.model_dump() == city.model_dump(), f"{mode}: {last!r} is not {city!r}"
            made[mode.name] = city.model_dump()
    print(json.dumps(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
