"""Settings of a service: one frozen class each.

Precedence: flags, DSD_* environment variables, the settings file if the class has one (`SettingsFile`), defaults.

Invariant: a process has valid settings, or it stops with status 2 and one line that names the bad one. `--help` lists
every setting with its variable and default. Secrets appear neither there, nor in logs, nor in error messages.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from shared.protocol.subjects import new_instance_id
from shared.runtime.nats_keys import public_key
from shared.timing import DRAIN_S, HEARTBEAT_S, MAX_SILENCE_S, STALE_HEARTBEATS

ENV_PREFIX = "DSD_"
NATS_SCHEMES = ("nats", "tls", "ws", "wss")

_SCHEME = r"[\w+.-]+://"
_BEFORE_AT = re.compile(rf"(^|,)(\s*{_SCHEME})?(?:(?!,\s*{_SCHEME}).)*@", re.DOTALL)  # in each of several addresses
_FLAG_NAME = re.compile(r"--[a-zA-Z0-9_-]+")


class BadSettings(ValueError):
    """Invalid settings. The message is one line that names the bad one."""


class ServiceSettings(BaseSettings):
    """Settings that every service has."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_show_env_vars=True,
        cli_exit_on_error=False,
    )

    name: str = Field("service", description="Name of this instance, used in subjects and permissions")
    nats_url: str = Field(
        "nats://127.0.0.1:4222", description="Address of the NATS server; several are separated by commas"
    )
    nats_user: str = Field("", description="NATS user; empty: the server has no users")
    nats_password: SecretStr = Field(
        SecretStr(""), description="Password of the NATS user; set the variable, since other users see flags"
    )
    nats_nkey_seed: str = Field(
        "", description="File with the NKey seed of the NATS user, replaces user and password (docs/deploy.md)"
    )
    nats_key: SecretStr = Field(
        SecretStr(""), description="The NKey seed itself, in place of a file; set the variable, since others see flags"
    )
    nats_ca: str = Field(
        "",
        description="CA certificate that must have signed the NATS server's: its file, or its text (PEM); "
        "empty: system CAs",
    )
    heartbeat_s: float = Field(
        HEARTBEAT_S, gt=0, le=MAX_SILENCE_S / STALE_HEARTBEATS, description="Seconds between two heartbeats"
    )
    http_host: str = Field("127.0.0.1", description="Address of the health and metrics endpoints")
    http_port: int = Field(0, ge=0, le=65535, description="Port of the health and metrics endpoints; 0: any free port")
    http_keepalive_s: float = Field(75.0, gt=0, description="Seconds after which an idle HTTP connection is closed")
    drain_s: float = Field(DRAIN_S, ge=0, le=3600, description="Seconds for open sessions to finish after SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest severity that is logged"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Format of logs; auto: console on a terminal, else json"
    )

    @field_validator("name")
    @classmethod
    def _is_a_subject_token(cls, name: str) -> str:
        new_instance_id(name)
        return name

    @field_validator("nats_url")
    @classmethod
    def _is_an_address(cls, nats_url: str) -> str:
        check_nats_addresses(nats_url)
        return nats_url

    @field_validator("nats_nkey_seed")
    @classmethod
    def _holds_a_seed(cls, nats_nkey_seed: str) -> str:
        if nats_nkey_seed:
            _check_seed(Path(nats_nkey_seed))
        return nats_nkey_seed

    @field_validator("nats_key")
    @classmethod
    def _is_a_seed(cls, nats_key: SecretStr) -> SecretStr:
        if nats_key.get_secret_value():
            public_key(nats_key.get_secret_value())
        return nats_key

    @field_validator("nats_ca")
    @classmethod
    def _is_a_certificate(cls, nats_ca: str) -> str:
        if nats_ca and not is_pem(nats_ca) and not Path(nats_ca).is_file():
            raise ValueError("no such file")
        return nats_ca


class SettingsFile(PydanticBaseSettingsSource):
    """The TOML file that the setting `config_file` names; no values if that is empty."""

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config_file")
        if not path:
            return {}
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path} can't be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"{path} is not TOML: {error}") from error
        for name in values:
            if name not in self.settings_cls.model_fields:
                raise SettingsError(f"{path}: unknown setting {name}")
        return values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError("the file is read as a whole")


Settings = TypeVar("Settings", bound=BaseSettings)


def load(kind: type[Settings], argv: Sequence[str], prog: str) -> Settings:
    """Settings as `read` returns them. Exits with status 2 for invalid ones."""
    try:
        return read(kind, argv, prog)
    except BadSettings as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def read(kind: type[Settings], argv: Sequence[str], prog: str) -> Settings:
    """Settings from `argv` (without the program's name) and the environment. Raises BadSettings."""
    try:
        return kind(_cli_parse_args=[_dashed(flag) for flag in argv], _cli_prog_name=prog)
    except ValidationError as error:
        reason = _described(kind, error.errors(include_url=False)[0])
    except SettingsError as error:
        reason = re.sub(r"://\S*@", "://***@", str(error).removeprefix("error parsing CLI: "))
    raise BadSettings(" ".join(reason.split()))


def is_pem(certificate: str) -> bool:
    """Whether this is a certificate, and no file's name."""
    return certificate.lstrip().startswith("-----BEGIN")


def check_nats_addresses(addresses: str) -> None:
    """Raises ValueError unless all addresses, separated by commas, are those of NATS servers."""
    if not all(_is_nats_address(url.strip()) for url in addresses.split(",")):
        raise ValueError(f"each address must look like nats://host:port; schemes: {', '.join(NATS_SCHEMES)}")


def masked(addresses: str) -> str:
    """Addresses, separated by commas, with *** in place of the credentials before an @."""
    return _BEFORE_AT.sub(r"\1\2***@", addresses)


def _is_nats_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        scheme, host, _ = parts.scheme, parts.hostname, parts.port  # their ValueErrors may quote a password
    except ValueError:
        return False
    return scheme in NATS_SCHEMES and bool(host)


def _dashed(flag: str) -> str:
    """Accepts --http_port=1 as --http-port=1."""
    return _FLAG_NAME.sub(lambda name: name.group().replace("_", "-"), flag, count=1) if flag.startswith("--") else flag


def _described(kind: type[BaseSettings], error: ErrorDetails) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    message = error["msg"].removeprefix("Value error, ")
    if name not in kind.model_fields:
        return message
    may_show = kind.model_fields[name].annotation is not SecretStr and error["type"] != "missing"
    shown = masked(str(error["input"])) if name == "nats_url" else error["input"]
    given = f" (got {shown!r})" if may_show else ""
    return f"--{name.replace('_', '-')} / {ENV_PREFIX}{name.upper()}: {message}{given}"


def _check_seed(path: Path) -> None:
    """Raises ValueError for a file that holds no NKey seed of a NATS user."""
    try:
        public_key(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from error
    except ValueError:  # the error may quote the seed
        raise ValueError("the file holds no NKey seed of a user") from None
