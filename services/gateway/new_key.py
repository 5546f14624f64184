"""python -m services.gateway.new_key NAME: makes an API key. Its entry for the key file goes to stdout, the key itself
to stderr. The key is shown only this once and stored nowhere."""

from __future__ import annotations

import re
import sys

from services.gateway.admission.api_keys import NAME_PATTERN, digest, new_key


def main(argv: list[str]) -> int:
    """Prints a new key and its entry; returns the exit status."""
    if len(argv) != 1 or not re.fullmatch(NAME_PATTERN, argv[0]):
        print(f"usage: python -m services.gateway.new_key NAME (NAME: {NAME_PATTERN})", file=sys.stderr)
        return 2
    key = new_key()
    print(key, file=sys.stderr)
    print(f'[{argv[0]}]\nsha256 = "{digest(key).hex()}"')
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
