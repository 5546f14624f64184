"""A draft from the archive that a gateway names: fetched once, checked by its digest, unpacked into the cache.

Invariant: a folder of the cache holds a whole archive with the digest that is the folder's name.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import platform
import re
import tarfile
import tempfile
import zlib
from pathlib import Path

import aiohttp

from client.gateway import CONNECT_S, GET_SILENCE_S, ClientError

CHUNK_BYTES = 1 << 20
MARK = "tokenizer.json"  # the draft's folder in the archive is where this file is


class NoDraft(ClientError):
    """There is no draft to run."""


async def fetched(url: str, cache: Path) -> Path:
    """The folder of the draft at `url`, which ends in #sha256=<digest>. Raises NoDraft."""
    if not url:
        raise NoDraft("the gateway names no draft to fetch: name a folder with --draft (docs/models.md)")
    address, _, digest = url.partition("#sha256=")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise NoDraft(f"the gateway names a draft without its digest: {url}")
    folder = cache / digest
    if not folder.is_dir():
        await _fetch(address, digest, folder)
    found = next(folder.rglob(MARK), None)
    if found is None:
        raise NoDraft(f"the archive {address} holds no draft: it has no {MARK}")
    return found.parent


async def _fetch(address: str, digest: str, folder: Path) -> None:
    """Makes the folder. Raises NoDraft."""
    if not hasattr(tarfile, "data_filter"):
        todo = f"take 3.11.4 or newer, or unpack {address} yourself and name its folder with --draft"
        raise NoDraft(f"Python {platform.python_version()} can't unpack an archive safely: {todo}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            archive = Path(place) / "archive"
            await _download(address, archive, digest)
            await asyncio.to_thread(_unpack, archive, Path(place) / "draft", folder)
    except OSError as error:
        reason = error.strerror or error
        raise NoDraft(f"can't keep the draft in {folder}: {reason} (DSD_HOME names another place)") from error


async def _download(address: str, file: Path, digest: str) -> None:
    patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=GET_SILENCE_S)
    seen = hashlib.sha256()
    try:
        async with (
            aiohttp.ClientSession(timeout=patience, trust_env=address.startswith("https://")) as http,
            http.get(address, raise_for_status=True) as response,
        ):
            with file.open("wb") as out:
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    seen.update(chunk)
                    out.write(chunk)
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        raise NoDraft(f"can't fetch {address}: {error}") from error
    if seen.hexdigest() != digest:
        raise NoDraft(f"{address} is not the archive that the gateway names: its SHA-256 is {seen.hexdigest()}")


def _unpack(archive: Path, place: Path, folder: Path) -> None:
    """Raises NoDraft, and OSError where the disk is at fault."""
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(place, filter="data")
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise NoDraft(f"the archive of the draft can't be unpacked: {error}") from error
    try:
        place.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
