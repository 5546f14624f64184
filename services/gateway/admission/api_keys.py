"""API keys and their limits, and the file that lists them (docs/api.md, "Keys and limits").

Invariant: keys are neither stored nor logged, only their SHA-256. A presented key is compared with every entry in
constant time. An invalid file changes nothing: the keys of the last valid one stay.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from shared.protocol.subjects import OWNED, is_owned

PREFIX = "dsd-"
KEY_BYTES = 32
READ_TIMEOUT_S = 5.0  # the file may be on a network
OPEN_SCOPE = "open"  # the cache scope of a gateway without keys

NAME_PATTERN = "[a-z0-9][a-z0-9_-]{0,63}"
OWN_PATTERN = rf"\A{OWNED}[a-z0-9-]{{1,{64 - len(OWNED)}}}\z"

KeyName: TypeAlias = Annotated[str, Field(pattern=rf"\A{NAME_PATTERN}\z")]

DrafterName: TypeAlias = Annotated[str, Field(pattern=r"\A[a-z0-9-]{0,64}\*?\z", min_length=1)]
OwnName: TypeAlias = Annotated[str, Field(pattern=OWN_PATTERN)]
PublicKey: TypeAlias = Annotated[str, Field(pattern=r"\AU[A-Z2-7]{55}\z")]  # an NKey of a user


class BadKeyFile(ValueError):
    """The key file is not valid; the message gives the reason in one line."""


class KeyLimits(BaseModel):
    """Limits of one key; None: only the gateway's own limit."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    max_sessions: int | None = Field(default=None, ge=1)


class KeyEntry(KeyLimits):
    """A key's table in the file. drafters: names, or prefixes that end in `*`, of shared drafters that may see its
    prompts; None: all. own_drafters: those that serve this key alone, with the public keys of their NATS users."""

    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")
    drafters: list[DrafterName] | None = None
    own_drafters: dict[OwnName, PublicKey] = {}

    @field_validator("drafters")
    @classmethod
    def _are_shared(cls, names: list[str] | None) -> list[str] | None:
        if owned := next(filter(is_owned, names or ()), None):
            raise ValueError(f"{owned} is no shared drafter: names that begin with {OWNED} stand in own_drafters")
        return names


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A valid key. Its name appears in logs and metrics."""

    name: str
    limits: KeyLimits
    cache_scope: str  # sessions of one scope share the KV cache of a common prefix
    drafters: tuple[str, ...] | None = None  # as Generation.drafters
    own_drafters: Mapping[str, str] = field(default_factory=dict, hash=False)  # their public keys by name


ANYBODY = ApiKey("", KeyLimits(), OPEN_SCOPE)  # every request to a gateway without keys
_FILE = TypeAdapter(dict[KeyName, KeyEntry])


def new_key() -> str:
    """A key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest(key: str) -> bytes:
    """The stored form of a key. A plain hash is enough: 2^256 keys can't be tried. A slow or salted hash, made for
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
        """The matching key. Compares with all entries, so that the time reveals nothing."""
        presented_digest, found = digest(presented), None
        for known, key in self._keys:
            if hmac.compare_digest(known, presented_digest):
                found = key
        return found


class KeyFile:
    """The key file and its current keys. The constructor raises BadKeyFile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = _look(path)
        self.ring = parse(self._seen)

    async def reload(self) -> bool:
        """Reads the file again; True if it had changed. Raises BadKeyFile once for each invalid version."""
        reading = asyncio.ensure_future(asyncio.to_thread(_look, self.path))
        for _ in range(2):  # a process that was suspended finds the time of one wait over when it goes on
            await asyncio.wait([reading], timeout=READ_TIMEOUT_S / 2)
        if reading.done():
            seen = reading.result()
        else:
            reading.cancel()
            seen = f"could not be read within {READ_TIMEOUT_S:g} s"
        if seen == self._seen:
            return False
        self._seen = seen
        self.ring = parse(seen)
        return True


def parse(seen: bytes | str) -> KeyRing:
    """The keys that `_look` saw. Raises BadKeyFile, also for a file without keys, which is probably being written."""
    if isinstance(seen, str):
        raise BadKeyFile(seen)
    try:
        entries = _FILE.validate_python(tomllib.loads(seen.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadKeyFile(f"not valid TOML: {error}") from error
    except ValidationError as error:
        raise BadKeyFile(_message(error)) from error
    if not entries:
        raise BadKeyFile("holds no key")
    names: dict[str, str] = {}
    for name, entry in entries.items():
        if entry.sha256 in names:
            raise BadKeyFile(f"{names[entry.sha256]} and {name} have the same sha256")
        names[entry.sha256] = name
    owned = Counter(drafter for entry in entries.values() for drafter in entry.own_drafters)
    if shared := next((drafter for drafter, num in owned.items() if num > 1), None):
        raise BadKeyFile(f"the drafter {shared} belongs to two keys")
    return KeyRing(entries)


def _look(path: Path) -> bytes | str:
    """The file's bytes, or the reason why it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        return f"can't be read: {error.strerror}"


def _message(error: ValidationError) -> str:
    """The first error. An invalid name is not repeated: someone may have put the key there."""
    first = error.errors(include_url=False, include_input=False)[0]
    if "own_drafters" in first["loc"] and "[key]" in first["loc"]:
        return f"a name in own_drafters must begin with {OWNED}, and have at most 64 characters of a-z, 0-9 and '-'"
    if "[key]" in first["loc"]:
        return f"a key's name must match {NAME_PATTERN}"
    return f"{'.'.join(str(step) for step in first['loc'])}: {first['msg']}"


def _key(name: str, entry: KeyEntry) -> ApiKey:
    """The cache scope depends on the key's hash alone, so it is the same at every gateway and after every restart. It
    reveals neither the key nor its hash."""
    scope = hmac.new(bytes.fromhex(entry.sha256), b"dsd cache scope", hashlib.sha256).hexdigest()
    limits = KeyLimits(**entry.model_dump(exclude={"sha256", "drafters", "own_drafters"}))
    drafters = None if entry.drafters is None else tuple(entry.drafters)
    return ApiKey(name, limits, scope, drafters, entry.own_drafters)
