"""API keys: who may use this gateway, how much, and the file that says so (docs/api.md, "Keys and limits").

Invariant: a key itself is neither kept nor logged, only its SHA-256; a presented one is compared with every entry in
constant time. A file that can't be taken changes nothing: the keys taken last go on.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

PREFIX = "dsd-"
KEY_BYTES = 32
READ_TIMEOUT_S = 5.0  # of a file, which may lie on a network
OPEN_SCOPE = "open"  # of a gateway without keys

NAME_PATTERN = "[a-z0-9][a-z0-9_-]{0,63}"

KeyName: TypeAlias = Annotated[str, Field(pattern=rf"\A{NAME_PATTERN}\z")]


class BadKeyFile(ValueError):
    """The file holds no usable keys; the message says why, in one line."""


class KeyLimits(BaseModel):
    """What one key may do; None: no limit but the gateway's own."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    max_sessions: int | None = Field(default=None, ge=1)


class KeyEntry(KeyLimits):
    """A key as the file has it."""

    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One that may ask; the name is for logs and metrics."""

    name: str
    limits: KeyLimits
    cache_scope: str  # answers of one scope share the KV cache of a common prefix


ANYBODY = ApiKey("", KeyLimits(), OPEN_SCOPE)  # asks a gateway without keys
_FILE = TypeAdapter(dict[KeyName, KeyEntry])


def new_key() -> str:
    """A key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest(key: str) -> bytes:
    """What is kept of a key. A plain hash is enough: nobody can try 2^256 keys, so a slow or salted one, made for
    passwords that can be guessed, would only cost time on every request."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class KeyRing:
    """The keys of one version of the file."""

    def __init__(self, entries: dict[str, KeyEntry]) -> None:
        self._keys = [(bytes.fromhex(entry.sha256), _key(name, entry)) for name, entry in entries.items()]

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def names(self) -> set[str]:
        return {key.name for _, key in self._keys}

    def find(self, presented: str) -> ApiKey | None:
        """The key presented. All entries are looked at, so that the time taken tells nothing."""
        presented_digest, found = digest(presented), None
        for known, key in self._keys:
            if hmac.compare_digest(known, presented_digest):
                found = key
        return found


class KeyFile:
    """The file with the keys, read again whenever it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = _look(path)
        self.ring = _ring(self._seen)

    async def reload(self) -> bool:
        """Whether a changed file was taken; raises BadKeyFile, once for each of its versions, when it can't be."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                seen = await asyncio.to_thread(_look, self.path)
        except TimeoutError:
            seen = f"could not be read within {READ_TIMEOUT_S:g} s"
        if seen == self._seen:
            return False
        self._seen = seen
        self.ring = _ring(seen)
        return True


def parse(raw: bytes) -> KeyRing:
    """The keys in a file's bytes; raises BadKeyFile. A file without keys is taken for one that is being written."""
    try:
        entries = _FILE.validate_python(tomllib.loads(raw.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadKeyFile(f"no TOML: {error}") from error
    except ValidationError as error:
        raise BadKeyFile(_told(error)) from error
    if not entries:
        raise BadKeyFile("holds no key")
    names: dict[str, str] = {}
    for name, entry in entries.items():
        if entry.sha256 in names:
            raise BadKeyFile(f"{names[entry.sha256]} and {name} have the same sha256")
        names[entry.sha256] = name
    return KeyRing(entries)


def _look(path: Path) -> bytes | str:
    """What the file holds, or why it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        return f"can't be read: {error.strerror}"


def _ring(seen: bytes | str) -> KeyRing:
    if isinstance(seen, str):
        raise BadKeyFile(seen)
    return parse(seen)


def _told(error: ValidationError) -> str:
    """The first thing wrong. A bad name is not repeated: it may be a key put in its place."""
    first = error.errors(include_url=False, include_input=False)[0]
    if "[key]" in first["loc"]:
        return f"a key's name must match {NAME_PATTERN}"
    return f"{'.'.join(str(step) for step in first['loc'])}: {first['msg']}"


def _key(name: str, entry: KeyEntry) -> ApiKey:
    """The cache scope follows from the key alone: equal on every gateway and after every restart, new with a new key,
    and it tells nothing of the key nor of its hash."""
    scope = hmac.new(bytes.fromhex(entry.sha256), b"dsd cache scope", hashlib.sha256).hexdigest()
    return ApiKey(name, KeyLimits(**entry.model_dump(exclude={"sha256"})), scope)
