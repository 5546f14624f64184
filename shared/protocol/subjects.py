"""NATS subjects and instance ids: who may say what to whom.

Invariant: the sender's id is part of every subject, so that a server's permissions, not a message body, say who spoke.

    dsd.v1.<service>.<instance id>.<verb>.<sender id>    one receiver
    dsd.v1.<verb>.<sender id>                            everybody (heartbeat, report)

An instance id is two tokens, `<name>.<nonce>`: the name is configured and carries permissions, the nonce is drawn at
boot, so a restarted process never hears its predecessor's traffic.
"""

from __future__ import annotations

import re
import secrets

from shared.protocol.messages import KINDS, Message, Service

PREFIX = "dsd.v1"
VERBS: dict[type[Message], str] = {kind: tag for tag, kind in KINDS.items()}  # of each type of message
_NAME = re.compile(r"[a-z0-9-]{1,64}")
_ID = r"[a-z0-9-]{1,64}\.[0-9a-f]{12}"
_SAID = re.compile(rf"{re.escape(PREFIX)}\.(?:[a-z]+\.{_ID}\.)?([a-z]+)\.{_ID}")


def new_instance_id(name: str) -> str:
    """A fresh id for a process called `name`; raises ValueError for a name that can't be a subject token."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r} must be 1 to 64 characters of a-z, 0-9 and '-'")
    return f"{name}.{secrets.token_hex(6)}"


def instance_name(instance_id: str) -> str:
    """The configured name in an instance id. As a label it has few values; the id changes with every boot."""
    return instance_id.partition(".")[0]


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
    """Pattern of all that is said to one instance: one subscription, so order is kept across verbs."""
    return f"{PREFIX}.{service}.{instance_id}.>"


def broadcast(kind: type[Message], sender_id: str) -> str:
    """The subject of a message of this kind from `sender_id` to every instance."""
    return f"{PREFIX}.{VERBS[kind]}.{sender_id}"


def all_broadcasts(kind: type[Message]) -> str:
    """Pattern of all broadcasts of one kind. It ends in `>`: from a leaf node that may only speak for some senders,
    nats-server lets nothing through to a pattern that ends in `*`."""
    return f"{PREFIX}.{VERBS[kind]}.>"


def all_said(service: Service, kind: type[Message]) -> str:
    """Pattern of one kind sent to any instance of a service (a gateway listens to window decisions)."""
    return f"{PREFIX}.{service}.*.*.{VERBS[kind]}.>"


def sender(subject: str) -> str:
    """The sender's instance id: the last two tokens of any subject of ours."""
    return ".".join(subject.rsplit(".", 2)[-2:])


def fits(subject: str, message: Message) -> bool:
    """Whether a well-formed sender says this kind of message by its own verb: that is what permissions are granted
    by."""
    said = _SAID.fullmatch(subject)
    return said is not None and said[1] == VERBS[type(message)]


def verb(subject: str) -> str:
    """The verb of any subject of ours: the token before the sender's id."""
    return subject.rsplit(".", 3)[-3]
