"""A service process seen from outside: its JSON log lines and HTTP endpoints."""

from __future__ import annotations

import http.client
import json
import subprocess
from typing import Any
from urllib.parse import urlsplit

END_S = 120


def logged(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """Reads the process's log up to the line with this event."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("{") and json.loads(line)["event"] == event:
            return dict(json.loads(line))
    raise AssertionError(f"ended before it logged {event!r}:\n" + "".join(lines))


def http_url(process: subprocess.Popen[str]) -> str:
    """The URL of the endpoints, from the log."""
    return str(logged(process, "http endpoints up")["url"])


def get(url: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=END_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
