"""instructor makes objects of a pydantic model in each of its ways, whole and piece by piece. argv: URL, model."""

import json
import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field

MODES = (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA)


class River(BaseModel):
    name: Literal["Danube", "Rhine", "Seine", "Tiber"]
    length_km: int = Field(ge=100, le=3000)
    is_navigable: bool


class City(BaseModel):
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
            made[mode.name] = [city.model_dump(), City.model_validate(last.model_dump()).model_dump()]
    print(json.dumps(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
