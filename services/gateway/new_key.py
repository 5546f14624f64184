"""python -m services.gateway.new_key NAME [--drafter DRAFTER]... [--into FILE]: makes an API key, and drafters' keys.

The entry for the key file goes to stdout, the keys themselves to stderr. They are shown only this once and stored
nowhere. With --into the entry goes into the key file. If that has NAME already, the API key stays as it is, and the
drafters are added to its entry; a drafter that is there gets a new key.

Invariant: a file is replaced at once, and only by one that gateways take.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from services.gateway.admission.api_keys import NAME_PATTERN, OWN_PATTERN, digest, new_key, parse
from shared.protocol.subjects import OWNED
from shared.runtime.nats_keys import new_seed, public_key


def main(argv: list[str]) -> int:
    """Makes keys and tells them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m services.gateway.new_key", description="Makes an API key.")
    parser.add_argument("name", metavar="NAME", help=f"of the key: {NAME_PATTERN}")
    parser.add_argument(
        "--drafter", action="append", default=[], metavar="DRAFTER", help=f"a drafter of its own, such as {OWNED}laptop"
    )
    parser.add_argument("--into", type=Path, metavar="FILE", help="the key file to change; default: print the entry")
    asked = parser.parse_args(argv)
    if not re.fullmatch(NAME_PATTERN, asked.name):
        parser.exit(2, f"{parser.prog}: NAME must match {NAME_PATTERN}\n")
    for drafter in asked.drafter:
        if not re.fullmatch(OWN_PATTERN.removeprefix(r"\A").removesuffix(r"\z"), drafter):
            what = f"begin with {OWNED}, and have at most 64 characters of a-z, 0-9 and '-'"
            parser.exit(2, f"{parser.prog}: DRAFTER must {what}, got {drafter}\n")
    try:
        secrets = _make(asked.name, asked.drafter, asked.into)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(*secrets, sep="\n", file=sys.stderr)
    return 0


def _make(name: str, drafters: list[str], into: Path | None) -> list[str]:
    """Writes or prints the entry; the secrets to show. Raises ValueError for a file that gateways would not take."""
    text = into.read_text(encoding="utf-8") if into and into.exists() else ""
    if text and not text.endswith("\n"):
        text += "\n"
    secrets, seeds = [], {drafter: new_seed() for drafter in drafters}
    if name not in tomllib.loads(text):
        key = new_key()
        secrets.append(key)
        text += f'[{name}]\nsha256 = "{digest(key).hex()}"\n'
    elif not drafters:
        raise ValueError(f"{into} has {name} already: name a drafter, or another key")
    text = _with_drafters(text, name, {drafter: public_key(seed) for drafter, seed in seeds.items()})
    parse(text.encode())
    if into:
        new = into.with_name(f"{into.name}.new")
        new.write_text(text, encoding="utf-8")
        if into.exists():
            shutil.copymode(into, new)
        new.replace(into)
    else:
        print(text, end="")
    return [*secrets, *(f"{drafter}: {seed}" for drafter, seed in seeds.items())]


def _with_drafters(text: str, name: str, keys: Mapping[str, str]) -> str:
    """The file with the drafters in the table of this API key, which may be missing. Old lines of theirs go."""
    if not keys:
        return text
    table, current, lines = f"[{name}.own_drafters]", "", []
    for line in text.splitlines():
        bare = line.partition("#")[0].strip()
        current = bare if bare.startswith("[") else current
        if current != table or bare.partition("=")[0].strip() not in keys:
            lines.append(line)
    places = [number for number, line in enumerate(lines, 1) if line.partition("#")[0].strip() == table]
    at = places[0] if places else len(lines)
    added = [] if places else [table]
    added += [f'{drafter} = "{key}"' for drafter, key in keys.items()]
    return "\n".join([*lines[:at], *added, *lines[at:], ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
