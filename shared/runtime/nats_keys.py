"""NKeys of NATS users: a seed is the secret of a user, and the server knows its public key."""

from __future__ import annotations

import base64
import binascii
import secrets

SEED_PREFIX, USER_PREFIX = 18 << 3, 20 << 3  # the first letters of an NKey: S for a seed, U for a user
SEED_BYTES = 32


def new_seed() -> str:
    """A new NKey seed of a user: prefix, 32 random bytes and their CRC16, in base32."""
    raw = bytes([SEED_PREFIX | USER_PREFIX >> 5, (USER_PREFIX & 31) << 3]) + secrets.token_bytes(SEED_BYTES)
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def public_key(seed: str) -> str:
    """Raises ValueError for what is no seed of a user. The message does not repeat it."""
    import nkeys  # loads libsodium, so only if keys are used

    try:
        if not seed.startswith("SU"):
            raise ValueError
        return str(nkeys.from_seed(bytearray(seed.encode())).public_key.decode())
    except (nkeys.NkeysError, ValueError):
        raise ValueError("not an NKey seed of a user") from None
