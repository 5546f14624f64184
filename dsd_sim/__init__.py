"""DSD-Sim simulates fleets of drafters and verifiers in virtual time (docs/simulator.md)."""

from __future__ import annotations

from shared.runtime.compiled import keep_compiled

keep_compiled()
