"""The fleet: who is there, who is full, who is slow."""

from __future__ import annotations

from deploy.grafana.panels import TOKENS_PER_S, Dashboard, Panel, Query, Row, panel, rate, share, stat

JUDGED = 'dsd_drafter_guesses_total{fate=~"accepted|late|rejected"}'
RIGHT = 'dsd_drafter_guesses_total{fate=~"accepted|late"}'
ACCEPTED = 'dsd_drafter_guesses_total{fate="accepted"}'
OF_SERVICES = "and on (instance) dsd_ready"
UTILIZATION = (
    "(sum(dsd_gateway_sessions) + sum(dsd_gateway_num_requests_waiting)) / (sum(dsd_verifier_capacity_sessions) > 0)"
)

NOW = Row(
    "Now",
    (
        stat("Not ready", "Services whose /readyz answers 503.", "none", "count(dsd_ready == 0) or vector(0)", "", 1),
        stat(
            "Utilisation",
            "Sessions and waiting requests / capacity of all verifiers.",
            "percentunit",
            UTILIZATION,
            "",
            1,
        ),
        stat("Verifiers", "As the gateways hear them.", "none", 'max(dsd_gateway_peers{service="verifier"})'),
        stat("Drafters", "As the gateways hear them.", "none", 'max(dsd_gateway_peers{service="drafter"})'),
        stat("Sessions", "In flight at the gateways.", "none", "sum(dsd_gateway_sessions)"),
        stat("Tokens", "Committed by all verifiers.", TOKENS_PER_S, rate("dsd_verifier_committed_tokens_total")),
    ),
)
PEERS = Row(
    "Instances",
    (
        panel(
            "Known",
            "Instances whose heartbeats are fresh.",
            "none",
            "max by (service) (dsd_gateway_peers)",
            "{{service}}",
        ),
        panel(
            "Lost in the last hour",
            "Instances that fell silent without a drain.",
            "none",
            "max by (service) (increase(dsd_gateway_lost_peers_total[1h]))",
            "{{service}}",
        ),
        panel("Ready", "1: ready.", "none", "dsd_ready"),
    ),
)
VERIFIERS = Row(
    "Verifiers: which one is full?",
    (
        Panel(
            "Utilisation",
            "Sessions running and waiting / capacity. From 1 on, a further session waits or is refused.",
            "percentunit",
            (Query("dsd_verifier_utilization_ratio", "{{instance}}"),),
            limit=1,
        ),
        panel(
            "Sessions",
            "Running or waiting.",
            "none",
            "dsd_verifier_num_requests_running + dsd_verifier_num_requests_waiting",
        ),
        panel("Tokens", "Committed.", TOKENS_PER_S, rate("dsd_verifier_committed_tokens_total", "instance")),
    ),
)
DRAFTERS = Row(
    "Drafters: which one is slow, which one guesses badly?",
    (
        panel(
            "Time of a guess",
            "Of a step, divided by the sessions in it.",
            "s",
            share("dsd_drafter_step_seconds_sum", "dsd_drafter_step_sessions_sum", "instance"),
        ),
        panel("Round trip", "To a verifier and back.", "s", "dsd_drafter_rtt_seconds", "{{instance}} → {{verifier}}"),
        panel("Guesses", "Drafted.", TOKENS_PER_S, rate("dsd_drafter_drafted_tokens_total", "instance")),
        panel(
            "Acceptance",
            "Right guesses / compared guesses, by the drafter's own count.",
            "percentunit",
            share(RIGHT, JUDGED, "instance"),
        ),
        panel(
            "Used",
            "Accepted / drafted guesses. Low where acceptance is high: the drafter or its link is slow.",
            "percentunit",
            share(ACCEPTED, "dsd_drafter_guesses_total", "instance"),
        ),
        panel("Sessions", "Drafted for.", "none", "dsd_drafter_sessions"),
    ),
)
PROCESSES = Row(
    "Processes",
    (
        Panel(
            "Lag of the event loop",
            "Above 0.1 s something computes on the loop.",
            "s",
            (Query("dsd_event_loop_lag_seconds", "{{instance}}"),),
            limit=0.1,
        ),
        panel("Processor", "Cores in use.", "none", f"{rate('process_cpu_seconds_total', 'instance')} {OF_SERVICES}"),
        panel("Memory", "Resident.", "bytes", f"process_resident_memory_bytes {OF_SERVICES}"),
    ),
)
FLEET = Dashboard(
    "fleet",
    "DSD: fleet",
    "Who is there, who is full, who is slow.",
    (NOW, PEERS, VERIFIERS, DRAFTERS, PROCESSES),
)
