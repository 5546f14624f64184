"""A hostile peer: a client of the NATS server with the real key of a role, which sends whatever that key allows.

Invariant: it sends only to subjects that its rights cover, in every verb of theirs, with every type of message. What
the key does not allow is tried by tests/k8s/test_nats_rights.py.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import ssl
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.hostile.messages import CLAIMED, Known, packets
from services.local.nats_server import Access
from services.local.nats_users import KINDS as RIGHTS
from shared.bus.parts import PART_BYTES
from shared.protocol.messages import (
    KINDS,
    Heartbeat,
    Load,
    MalformedMessage,
    Open,
    Opened,
    Sampling,
    Service,
    Speculate,
    TokenIds,
    decode,
    encode,
)
from shared.protocol.subjects import PREFIX, broadcast, to

CONNECT_S = 5.0
FLUSH_S = 30.0
AT_ONCE = 50  # messages between two looks at the clock
NUM_HEARD = 200
PENDING_BYTES = 64 << 20
STRANGE_NONCES = ("x", "0123456789AB", "0123456789abc", "é")
NO_RESPONDERS = {"Status": "503"}  # the header of the server's notice that nobody listens
# What tells a role of a session within its reach.
GIVEN_WITH: dict[str, type[Open | Opened | Speculate]] = {"verifier": Open, "drafter": Speculate, "gateway": Opened}
# What is made up hardly ever opens a session. So a gateway opens a valid one in each cycle of batches. A verifier or
# drafter announces itself as idle at the beginning of each cycle, under a new nonce, since a gateway hears no more of
# an instance that was replaced. After three intervals without announcements it is lost, and others get sessions.
ANNOUNCED: tuple[Service, ...] = ("verifier", "drafter")
CYCLE, NUM_ANNOUNCED, ANNOUNCED_S = 40, 10, 0.3
PROMPT, NUM_TOKENS = TokenIds((1, 2, 3)), 16  # of a session that a gateway opens


@dataclass(slots=True)
class HostilePeer:
    """One connection. given: sessions that gateways opened at it as a verifier: it may answer them with anything.
    sessions: all that were placed with it, or opened for it as a gateway."""

    role: str
    name: str
    known: Known
    given: set[str]
    rng: random.Random
    client: Client = field(default_factory=Client)
    num_sent: int = 0
    sessions: set[str] = field(default_factory=set)
    types: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    _heard: deque[bytes] = field(default_factory=lambda: deque(maxlen=NUM_HEARD))
    _newest_nonce: str = "0" * 12

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
        for batch in itertools.count():
            if (num_done := self.num_sent - num_before) >= num:
                break
            for _ in range(AT_ONCE):
                await self._send_one()
            await self._ask_for_sessions(batch % CYCLE)
            await asyncio.sleep(max(0.0, began + num_done / rate - loop.time()))
            if self.client.pending_data_size > PENDING_BYTES // 4:
                await self.client.flush(timeout=int(FLUSH_S))
        await self.client.flush(timeout=int(FLUSH_S))

    async def _ask_for_sessions(self, number: int) -> None:
        """At the end of a batch, so that it holds until the next one. number: of the batch in its cycle."""
        if number == 0 and self.role == "gateway":
            await self._open()
        for service in ANNOUNCED:
            if service == self.role and number < NUM_ANNOUNCED:
                await self._announce(service, is_new=number == 0)

    async def _open(self) -> None:
        """Opens a session at a living verifier."""
        verifier_id = self.rng.choice(self.known.instance_ids["verifier"])
        session_id = f"{self.rng.getrandbits(128):032x}"
        self.known.session_ids.append(session_id)
        request = Open(session_id, 1, None, PROMPT, TokenIds(), Sampling(), TokenIds(), NUM_TOKENS)
        await self.client.publish(to("verifier", verifier_id, Open, self._own_id), encode(request))

    async def _announce(self, service: Service, *, is_new: bool) -> None:
        """Tells gateways of an idle instance for every model and text."""
        if is_new:
            self._newest_nonce = f"{self.rng.getrandbits(48):012x}"
        models = list(self.known.models)
        heartbeat = Heartbeat(service, self._own_id, ANNOUNCED_S, models, CLAIMED, CLAIMED, "", Load(), False)
        await self.client.publish(broadcast(Heartbeat, service, self._own_id), encode(heartbeat))

    @property
    def _own_id(self) -> str:
        return f"{self.name}.{self._newest_nonce}"

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
        return self._newest_nonce if way < 0.995 else f"{self.rng.getrandbits(48):012x}"

    async def _hear(self, message: Msg) -> None:
        self._heard.append(message.data)
        with suppress(MalformedMessage):
            heard = decode(message.data)
            if isinstance(heard, Open | Opened | Speculate) and type(heard) is GIVEN_WITH.get(self.role):
                self.sessions.add(heard.session_id)
            if self.role == "verifier" and isinstance(heard, Open):
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
