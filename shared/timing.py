"""Intervals, leases and expiries that several programs must agree on: services with each other, DSD-Sim with a service.

Defaults of settings come from here. Times are seconds.
"""

HEARTBEAT_S = 1.0  # between two heartbeats of an instance
STALE_HEARTBEATS = 3  # an instance is gone after so many of its heartbeat intervals without a heartbeat
MAX_SILENCE_S = 60.0  # an instance is gone after so long, whatever interval its heartbeats name
REPORT_S = 0.25  # between two reports of a drafter to the controllers, at least
DECISION_TTL_S = 30.0  # a drafter follows a controller's decision for so long, then takes the default window
PAIR_EXPIRY_S = 30.0  # a controller forgets a pair without a report for so long
DRAFTER_LEASE_S = 2.0  # a verifier decodes alone when a session has waited for guesses for so long
DRAIN_S = 20.0  # open sessions get so long to finish after SIGTERM


def silence_s(interval_s: float) -> float:
    """An instance whose heartbeats name this interval is gone after so long without one."""
    return min(STALE_HEARTBEATS * interval_s, MAX_SILENCE_S)
