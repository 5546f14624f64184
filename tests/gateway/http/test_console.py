"""GET /console over HTTP: its files, their headers, and who may have them. In a browser: tests/console."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from services.gateway.http.endpoints.console import CONSOLE_PATHS, FILES, FOLDER, PAGE
from tests.gateway.admission.test_api_keys import KEYS, bearer, entry, write
from tests.gateway.conftest import World, a_world

ROOT = Path(__file__).parents[3]
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": "application/json"}


async def test_the_page_and_all_its_files_are_served_with_a_strict_policy(world: World) -> None:
    for path in sorted(CONSOLE_PATHS - {"/console/"}):
        response = await world.client.get(path)
        assert response.status == 200, path
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert "http" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.content_type == KINDS.get(Path(path).suffix, "text/html")


async def test_the_address_with_a_slash_leads_to_the_one_without(world: World) -> None:
    response = await world.client.get("/console/", allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (308, "../console")
    assert (await world.client.get("/console/")).url.path == "/console"


@pytest.mark.parametrize(
    "path", ["/console/index.html", "/console/..%2Fsettings.py", "/console/__init__.py", "/console/a/b"]
)
async def test_nothing_else_of_the_folder_or_above_is_served(world: World, path: str) -> None:
    assert (await world.client.get(path)).status == 404


async def test_where_keys_are_on_the_files_need_none_and_say_so(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "keys.toml", entry("alice", KEYS["alice"]))
    async with a_world(folder, api_keys_file=str(tmp_path / "keys.toml"), inspector=False) as world:
        assert (await world.client.get("/console")).status == 200
        settings = await (await world.client.get("/console/settings.json")).json()
        assert settings == {"needs_key": True, "has_inspector": False}
        for path in ("/dsd/fleet", "/v1/models", "/console/../dsd/fleet", "/console/other"):
            assert (await world.client.get(path)).status == 401
        assert (await world.client.get("/v1/dsd/requests", headers=bearer(KEYS["alice"]))).status == 404


async def test_where_it_is_switched_off_there_is_no_page(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "keys.toml", entry("alice", KEYS["alice"]))
    async with a_world(folder, console=False) as world:
        assert (await world.client.get("/console")).status == 404
    async with a_world(folder, console=False, api_keys_file=str(tmp_path / "keys.toml")) as world:
        assert (await world.client.get("/console")).status == 401


def test_the_files_are_those_of_the_folder_and_are_installed_with_the_package() -> None:
    present = {path.name for path in FOLDER.iterdir()}
    assert present == {PAGE, *FILES}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["services.gateway"]
    assert all(any(fnmatch(f"console/{name}", pattern) for pattern in patterns) for name in present)


def test_the_files_load_nothing_from_elsewhere_and_make_no_markup_from_text() -> None:
    for name in (PAGE, *FILES):
        text = (FOLDER / name).read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[^\"'\s]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
        assert not re.search(r"\sstyle=|\son[a-z]+=\"|<script>|<style", text), name
