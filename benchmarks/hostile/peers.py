"""A hostile peer: a client of the NATS server with the real key of a role, which sends whatever that key allows.

Invariant: it sends only to subjects that its rights cover, in every verb of theirs, with every type of message. What
the key does not allow is tried by tests/k8s/test_nats_rights.py.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.hostile.messages import Known, packets
from services.local.nats_server import Access
from services.local.nats_users import KINDS as RIGHTS
from shared.bus.parts import PART_BYTES
from shared.protocol.messages import KINDS, MalformedMessage, Open, decode
from shared.protocol.subjects import PREFIX

CONNECT_S = 5.0
FLUSH_S = 30.0
AT_ONCE = 50  # messages between two looks at the clock
NUM_HEARD = 200
PENDING_BYTES = 64 << 20
STRANGE_NONCES = ("x", "0123456789AB", "0123456789abc", "é")
NO_RESPONDERS = {"Status": "503"}  # the header of the server's notice that nobody listens


@dataclass(slots=True)
class HostilePeer:
    """One connection. given: sessions that gateways opened at it as a verifier: it may answer them with anything."""

    role: str
    name: str
    known: Known
    given: set[str]
    rng: random.Random
    client: Client = field(default_factory=Client)
    num_sent: int = 0
    types: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    _heard: deque[bytes] = field(default_factory=lambda: deque(maxlen=NUM_HEARD))

    async def connect(self, access: Access) -> None:
        settings = access.settings[self.name]
        await self.client.connect(
            access.url,
            nkeys_seed=settings["DSD_NATS_NKEY_SEED"],
            tls=ssl.create_default_context(cafile=settings["DSD_NATS_CA"]),
            error_cb=self._complain,
            connect_timeout=int(CONNECT_S),
            pending_size=PENDING_BYTES,
        )
        for pattern in RIGHTS[self.role].subscribe:
            await self.client.subscribe(f"{PREFIX}.{pattern.replace('NAME', self.name)}", cb=self._hear)
        await self.client.flush(timeout=int(FLUSH_S))

    async def attack(self, num: int, rate: float) -> None:
        """Sends so many packets, at most `rate` a second."""
        loop = asyncio.get_running_loop()
        began, num_before = loop.time(), self.num_sent
        while (num_done := self.num_sent - num_before) < num:
            for _ in range(AT_ONCE):
                await self._send_one()
            await asyncio.sleep(max(0.0, began + num_done / rate - loop.time()))
            if self.client.pending_data_size > PENDING_BYTES // 4:
                await self.client.flush(timeout=int(FLUSH_S))
        await self.client.flush(timeout=int(FLUSH_S))

    async def _send_one(self) -> None:
        verb, subject = self._subject()
        kind = verb if self.rng.random() < 0.7 else self.rng.choice(sorted(KINDS))
        self.known.heard = list(self._heard)[-20:]
        has_header = self.rng.random() < 0.01
        reply = self.rng.choice((subject, f"{PREFIX}.x", "_INBOX.x")) if self.rng.random() < 0.02 else ""
        for packet in packets(kind, self.known, self.rng):
            packet = packet[:PART_BYTES]  # the server ends the connection for more, headers included
            headers = NO_RESPONDERS if has_header and len(packet) < PART_BYTES // 2 else None
            await self.client.publish(subject, packet, reply=reply, headers=headers)
            self.num_sent += 1
        self.types[kind] += 1

    def _subject(self) -> tuple[str, str]:
        """A subject that the rights cover, and its verb. Sets the receiver in `known`."""
        pattern = self.rng.choice(RIGHTS[self.role].publish).replace("NAME", self.name)
        tokens = pattern.split(".")
        self.known.receiver_id = ""
        if tokens[1:3] == ["*", "*"]:
            living = self.known.instance_ids.get(tokens[0], [])
            receiver_id = self.rng.choice(living) if living and self.rng.random() < 0.95 else "nobody.0123456789ab"
            self.known.receiver_id = receiver_id
            tokens[1:3] = receiver_id.split(".")
        verb = tokens[3] if len(tokens) == 6 else tokens[0]
        tokens[-1] = self._nonce()
        self.known.own_id = f"{self.name}.{tokens[-1]}"
        return verb, ".".join([PREFIX, *tokens])

    def _nonce(self) -> str:
        """Mostly that of one instance: that of a living process of its own name, if there is one, or made up."""
        living = [each for ids in self.known.instance_ids.values() for each in ids if each.startswith(f"{self.name}.")]
        way = self.rng.random()
        if way < 0.02:
            return self.rng.choice(STRANGE_NONCES)
        if living and way < 0.5:
            return living[0].partition(".")[2]
        return "0" * 12 if way < 0.95 else f"{self.rng.getrandbits(48):012x}"

    async def _hear(self, message: Msg) -> None:
        self._heard.append(message.data)
        with suppress(MalformedMessage):
            if self.role == "verifier" and isinstance(heard := decode(message.data), Open):
                self.given.add(heard.session_id)
                self.known.session_ids.append(heard.session_id)

    async def _complain(self, error: Exception) -> None:
        self.errors[str(error)[:100]] += 1


@asynccontextmanager
async def hostile_peer(
    access: Access, role: str, name: str, known: Known, given: set[str], seed: int
) -> AsyncIterator[HostilePeer]:
    known.own_service = role
    peer = HostilePeer(role, name, known, given, random.Random(f"{seed} {role}"))
    await peer.connect(access)
    try:
        yield peer
    finally:
        await peer.client.close()
