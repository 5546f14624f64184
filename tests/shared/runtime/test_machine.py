"""A machine's id, one for all its processes, from which nothing else can be read; and the dtype that suits it."""

import subprocess
import sys
from pathlib import Path

import pytest

from shared.runtime import machine
from shared.runtime.machine import ID_DIGITS, fast_dtype, machine_id


def without_cache() -> str:
    return machine_id.__wrapped__()


def test_processes_of_one_machine_have_one_id() -> None:
    program = "from shared.runtime.machine import machine_id; print(machine_id())"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout.strip() == machine_id() == without_cache()


def test_the_id_is_a_digest_of_the_boot_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ids = []
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"{name}\n")
        monkeypatch.setattr(machine, "BOOT_ID", tmp_path / name)
        ids.append(without_cache())
    assert all(len(each) == ID_DIGITS and set(each) <= set("0123456789abcdef") for each in ids)
    assert ids[0] != ids[1]


def test_without_a_boot_id_host_name_and_network_address_make_the_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "BOOT_ID", tmp_path / "absent")
    first = without_cache()
    assert first == without_cache()
    monkeypatch.setattr(machine.socket, "gethostname", lambda: "another")
    assert without_cache() != first


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fma avx2", "float32"),
        ("avx512f avx512_bf16", "bfloat16"),
        ("amx_tile amx_bf16", "bfloat16"),
        (None, "float32"),
    ],
)
def test_bfloat16_is_fast_where_the_processor_multiplies_it(
    flags: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    if flags:
        info.write_text(f"model name\t: A processor\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    assert fast_dtype() == expected
