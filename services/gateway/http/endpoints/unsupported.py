"""Endpoints of OpenAI's API and of vLLM's that this gateway does not have: each is refused by its name.

A 404, since OpenAI's clients retry a 501 and raise it as an error of the server.
"""

from __future__ import annotations

from services.gateway.errors import ApiError

UNSUPPORTED = (  # of OpenAI under /v1, then of vLLM and others; paths below each belong to it
    "/v1/assistants",
    "/v1/audio",
    "/v1/batches",
    "/v1/containers",
    "/v1/conversations",
    "/v1/embeddings",
    "/v1/evals",
    "/v1/files",
    "/v1/fine_tuning",
    "/v1/images",
    "/v1/moderations",
    "/v1/organization",
    "/v1/realtime",
    "/v1/threads",
    "/v1/uploads",
    "/v1/vector_stores",
    "/v1/videos",
    "/classify",
    "/embeddings",
    "/invocations",
    "/pooling",
    "/rerank",
    "/score",
    "/tokenizer_info",
    "/v1/messages",
    "/v1/pooling",
    "/v1/rerank",
    "/v1/score",
    "/v2/embed",
    "/v2/rerank",
)


def unknown_path(path: str) -> ApiError:
    """The answer to a request for a path that no handler has."""
    name = next((name for name in UNSUPPORTED if path == name or path.startswith(name + "/")), None)
    if name is None:
        return ApiError(404, "There is no such endpoint")
    message = f"The endpoint {name} is not supported: this gateway serves chat, responses and completions only"
    return ApiError(404, message, code="unsupported_endpoint")
