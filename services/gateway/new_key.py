"""python -m services.gateway.new_key NAME [--drafter DRAFTER]...: makes an API key, and keys for drafters of its own.

The entry for the key file goes to stdout, the keys themselves to stderr. They are shown only this once and stored
nowhere. With --drafters-only the API key stays as it is, and the entry is a part of the one that is there.
"""

from __future__ import annotations

import argparse
import re
import sys

from services.gateway.admission.api_keys import NAME_PATTERN, OWN_PATTERN, digest, new_key
from shared.protocol.subjects import OWNED
from shared.runtime.nats_keys import new_seed, public_key


def main(argv: list[str]) -> int:
    """Prints new keys and their entry; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m services.gateway.new_key", description="Makes an API key.")
    parser.add_argument("name", metavar="NAME", help=f"of the key: {NAME_PATTERN}")
    parser.add_argument(
        "--drafter", action="append", default=[], metavar="DRAFTER", help=f"a drafter of its own, such as {OWNED}laptop"
    )
    parser.add_argument("--drafters-only", action="store_true", help="for a key that is there")
    asked = parser.parse_args(argv)
    if not re.fullmatch(NAME_PATTERN, asked.name):
        parser.exit(2, f"{parser.prog}: NAME must match {NAME_PATTERN}\n")
    for drafter in asked.drafter:
        if not re.fullmatch(OWN_PATTERN.removeprefix(r"\A").removesuffix(r"\z"), drafter):
            what = f"begin with {OWNED}, and have at most 64 characters of a-z, 0-9 and '-'"
            parser.exit(2, f"{parser.prog}: DRAFTER must {what}, got {drafter}\n")
    if not asked.drafters_only:
        key = new_key()
        print(key, file=sys.stderr)
        print(f'[{asked.name}]\nsha256 = "{digest(key).hex()}"')
    if asked.drafter:
        print(f"[{asked.name}.own_drafters]")
    for drafter in asked.drafter:
        seed = new_seed()
        print(f"{drafter}: {seed}", file=sys.stderr)
        print(f'{drafter} = "{public_key(seed)}"')
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
