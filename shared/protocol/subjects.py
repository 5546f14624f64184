"""NATS subjects and instance ids: who may send what to whom.

Invariant: every subject ends in the sender's id. The server's permissions prove the sender, and the service of a
broadcast's sender; the message body doesn't.

    dsd.v1.<service>.<instance id>.<verb>.<sender id>    to one receiver
    dsd.v1.<verb>.<sender's service>.<sender id>         to everybody who listens (heartbeat)

An instance id has two tokens, `<name>.<nonce>`. The name is configured and carries permissions. The nonce is drawn at
boot, so a restarted process never receives its predecessor's messages. A drafter whose name begins with `key-` belongs
to an API key, and gets the sessions of that key alone.
"""

from __future__ import annotations

import re
import secrets

from shared.protocol.messages import KINDS, Heartbeat, Message, Report, Service

PREFIX = "dsd.v1"
OWNED = "key-"
VERBS: dict[type[Message], str] = {kind: tag for tag, kind in KINDS.items()}  # the verb of each message type
_NAME = re.compile(r"[a-z0-9-]{1,64}")
_ID = r"[a-z0-9-]{1,64}\.[0-9a-f]{12}"
_TO_ONE = re.compile(rf"{re.escape(PREFIX)}\.[a-z]+\.{_ID}\.([a-z]+)\.{_ID}")


def new_instance_id(name: str) -> str:
    """A new id for a process called `name`. Raises ValueError if the name is not a valid subject token."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r} must be 1 to 64 characters of a-z, 0-9 and '-'")
    return f"{name}.{secrets.token_hex(6)}"


def instance_name(instance_id: str) -> str:
    """The configured name in an instance id. As a label it has few values; the id changes with every boot."""
    return instance_id.partition(".")[0]


def is_owned(name: str) -> bool:
    """Whether a drafter of that name belongs to an API key."""
    return name.startswith(OWNED)


def new_session_id() -> str:
    """128 random bits as 32 hexadecimal characters."""
    return secrets.token_hex(16)


def to(service: Service, instance_id: str, kind: type[Message], sender_id: str) -> str:
    """The subject of a message of this kind from `sender_id` to one instance."""
    return with_verb(service, instance_id, VERBS[kind], sender_id)


def with_verb(service: Service, instance_id: str, verb: str, sender_id: str) -> str:
    """The subject of `verb` from `sender_id` to one instance. Messages use `to`; absences have other verbs."""
    return f"{PREFIX}.{service}.{instance_id}.{verb}.{sender_id}"


def inbox(service: Service, instance_id: str) -> str:
    """Pattern of all messages to one instance. It is one subscription, so messages keep their order across verbs."""
    return f"{PREFIX}.{service}.{instance_id}.>"


def broadcast(kind: type[Message], service: Service, sender_id: str) -> str:
    """The subject of a message of this kind from an instance of `service` to everybody who listens."""
    return f"{PREFIX}.{VERBS[kind]}.{service}.{sender_id}"


def all_broadcasts(kind: type[Message], service: Service) -> str:
    """Pattern of all broadcasts of one kind from instances of `service`. It ends in `>` because nats-server forwards
    nothing to a pattern that ends in `*` from a leaf node that may publish for some senders only."""
    return f"{PREFIX}.{VERBS[kind]}.{service}.>"


def all_said(service: Service, kind: type[Message]) -> str:
    """Pattern of one kind to any instance of a service. Gateways subscribe to window decisions with it."""
    return f"{PREFIX}.{service}.*.*.{VERBS[kind]}.>"


def sender(subject: str) -> str:
    """The sender's instance id: the last two tokens of the subject."""
    return ".".join(subject.rsplit(".", 2)[-2:])


def fits(subject: str, message: Message) -> bool:
    """Whether the message is what its subject says: its type has the verb, a report is of the drafter that it names,
    and a heartbeat of the service and the instance. Permissions are granted by subject, so a receiver drops what does
    not fit."""
    if isinstance(message, Heartbeat):
        return subject == broadcast(Heartbeat, message.service, message.instance_id)
    found = _TO_ONE.fullmatch(subject)
    is_of_sender = not isinstance(message, Report) or sender(subject) == message.drafter_id
    return found is not None and found[1] == VERBS[type(message)] and is_of_sender


def verb(subject: str) -> str:
    """The verb of a message to one instance: the token before the sender's id."""
    return subject.rsplit(".", 3)[-3]
