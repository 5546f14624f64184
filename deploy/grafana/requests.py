"""Requests: how many, how fast, how many fail, and why they wait."""

from __future__ import annotations

from deploy.grafana.panels import TOKENS_PER_S, Dashboard, Panel, Query, Row, mean, panel, quantiles, rate, share, stat

TTFT = "dsd_gateway_time_to_first_token_seconds"
TPOT = "dsd_gateway_request_time_per_output_token_seconds"
E2E = "dsd_gateway_e2e_request_latency_seconds"
QUEUE = "dsd_gateway_request_queue_time_seconds"
FAILED = "dsd_gateway_failed_sessions_total"

OBJECTIVES = Row(
    "Objectives",
    (
        stat(
            "First token within 1 s",
            "Share of answers.",
            "percentunit",
            share(f'{TTFT}_bucket{{le="1.0"}}', f"{TTFT}_count"),
        ),
        stat(
            "50 ms a token",
            "Share of answers with TPOT up to 50 ms.",
            "percentunit",
            share(f'{TPOT}_bucket{{le="0.05"}}', f"{TPOT}_count"),
        ),
        stat(
            "Answers complete",
            "Share of sessions that did not fail.",
            "percentunit",
            f"{rate(f'{E2E}_count')} / ({rate(f'{E2E}_count')} + {rate(FAILED)})",
        ),
        stat("Requests", "All endpoints.", "reqps", rate("dsd_gateway_requests_total")),
        stat("In flight", "Sessions.", "none", "sum(dsd_gateway_sessions)"),
        stat("Waiting", "Requests without a slot.", "none", "sum(dsd_gateway_num_requests_waiting)", "", 1),
    ),
)
TIMES = Row(
    "Times",
    (
        quantiles("Time to first token", "From the request on.", TTFT),
        quantiles("Time per output token", "After the first one, mean of an answer.", TPOT),
        quantiles("Time of an answer", "From the request to the last token.", E2E),
    ),
)
WAITING = Row(
    "Why was an answer slow? Where it waited",
    (
        quantiles(
            "Wait for a slot",
            "All slots of the gateway were taken (DSD_MAX_SESSIONS).",
            QUEUE,
        ),
        panel(
            "Wait for KV cache",
            "Sessions that a verifier holds without KV cache.",
            "none",
            "dsd_verifier_num_requests_waiting",
        ),
        Panel(
            "First token without the wait",
            "Mean time to first token less the mean wait for a slot: placing, reading the prompt, the first pass.",
            "s",
            (Query(f"{mean(TTFT)} - {mean(QUEUE)}", "mean"),),
        ),
    ),
)
LOAD = Row(
    "Load",
    (
        panel(
            "Requests",
            "By endpoint and status.",
            "reqps",
            rate("dsd_gateway_requests_total", "endpoint, status"),
            "{{endpoint}} {{status}}",
        ),
        Panel(
            "Sessions",
            "In flight, and open connections.",
            "none",
            (
                Query("dsd_gateway_sessions", "{{instance}}"),
                Query("dsd_gateway_connections", "{{instance}} connections"),
            ),
        ),
        Panel(
            "Tokens",
            "Of ended sessions.",
            TOKENS_PER_S,
            (
                Query(rate("dsd_gateway_prompt_tokens_total"), "prompts"),
                Query(rate("dsd_gateway_generation_tokens_total"), "answers"),
            ),
        ),
    ),
)
FAILURES = Row(
    "Refused, failed, moved",
    (
        panel(
            "Rejections",
            "By the limit that refused the request.",
            "reqps",
            rate("dsd_gateway_admission_rejections_total", "reason"),
            "{{reason}}",
        ),
        panel("Failed sessions", "By code.", "cps", rate(FAILED, "code"), "{{code}}"),
        Panel(
            "Moves",
            "Of running sessions to another verifier or drafter.",
            "cps",
            (
                Query(rate("dsd_gateway_failovers_total"), "verifier"),
                Query(rate("dsd_gateway_drafter_changes_total"), "drafter"),
            ),
        ),
    ),
)
REQUESTS = Dashboard(
    "requests",
    "DSD: requests",
    "Latency objectives, load, waiting and failures.",
    (OBJECTIVES, TIMES, WAITING, LOAD, FAILURES),
)
