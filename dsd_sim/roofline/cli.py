"""The command that writes profiles of hardware that is not here: python -m dsd_sim roofline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dsd_sim.roofline.roofline import DEVICES, MODELS, Role, Setup, encode, profile_of, write_shipped


def roofline(
    device: Annotated[str, typer.Option(help=f"One of {', '.join(DEVICES)}.")] = "",
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = "",
    role: Annotated[Role, typer.Option(help="Whose times: of verify passes, or of draft steps.")] = Role.VERIFIER,
    gpus: Annotated[int, typer.Option(min=1, help="Devices that the model is divided among.")] = 1,
    weight_bits: Annotated[float, typer.Option(help="Bits of a weight in memory.")] = 16,
    out: Annotated[Path | None, typer.Option(help="JSON file of the profile, replaced; without it, printed.")] = None,
    shipped: Annotated[
        Path | None, typer.Option(help="Write the profiles that ship into this folder, and nothing else.")
    ] = None,
) -> None:
    """Computes a profile from published bandwidth and arithmetic; nothing is measured."""
    try:
        if shipped is not None:
            for path in write_shipped(shipped):
                print(path, file=sys.stderr)
            return
        if not device or not model:
            raise ValueError("--device and --model must be given, or --shipped")
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
