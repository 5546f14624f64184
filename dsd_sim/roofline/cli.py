"""The command `python -m dsd_sim roofline`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dsd_sim.roofline.roofline import DEVICES, MODELS, Role, Setup, encode, profile_of, write_shipped


def roofline(
    device: Annotated[str, typer.Option(help=f"One of {', '.join(DEVICES)}.")] = "",
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = "",
    role: Annotated[
        Role, typer.Option(help="Times of verify passes (verifier) or of draft steps (drafter).")
    ] = Role.VERIFIER,
    gpus: Annotated[int, typer.Option(min=1, help="Devices that share the model (tensor parallelism).")] = 1,
    weight_bits: Annotated[float, typer.Option(help="Bits per weight in memory.")] = 16,
    out: Annotated[Path | None, typer.Option(help="File of the profile (JSON); default: standard output.")] = None,
    shipped: Annotated[
        Path | None, typer.Option(help="Only write all profiles of this repository into this folder.")
    ] = None,
) -> None:
    """Computes a profile from published bandwidth and arithmetic. Nothing is measured."""
    try:
        if shipped is not None:
            for path in write_shipped(shipped):
                print(path, file=sys.stderr)
            return
        if not device or not model:
            raise ValueError("either --device and --model or --shipped must be given")
        setup = Setup(role, device, model, gpus, weight_bits)
        text = encode(profile_of(setup))
        if out is None:
            sys.stdout.write(text)
        else:
            out.write_text(text, encoding="utf-8")
        print(f"{setup.name}: room for {setup.kv_tokens:,} tokens of KV cache", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from error
