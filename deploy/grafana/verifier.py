"""Verifiers: passes, batches, KV cache, sessions."""

from __future__ import annotations

from deploy.grafana.panels import TOKENS_PER_S, Dashboard, Panel, Query, Row, mean, panel, quantiles, rate, share

PASS = "dsd_verifier_pass_seconds"

FULL = Row(
    "How full?",
    (
        Panel(
            "Utilisation",
            "Sessions running and waiting / capacity. From 1 on, a further session waits or is refused.",
            "percentunit",
            (Query("dsd_verifier_utilization_ratio", "{{instance}}"),),
            limit=1,
        ),
        Panel(
            "Busy",
            "Share of the time that passes take. Near 1, TPOT grows with every session.",
            "percentunit",
            (Query(rate(f"{PASS}_sum", "instance"), "{{instance}}"),),
            limit=1,
        ),
        panel(
            "Capacity", "Sessions of the present size that can run at once.", "none", "dsd_verifier_capacity_sessions"
        ),
    ),
)
PASSES = Row(
    "Passes",
    (
        quantiles("Pass time", "All verifiers.", PASS),
        panel("Pass time", "Mean.", "s", mean(PASS, "instance")),
        panel("Passes", "Per second.", "cps", rate(f"{PASS}_count", "instance")),
        panel("Batch", "Sessions in a pass.", "none", mean("dsd_verifier_pass_sessions", "instance")),
        panel(
            "Tokens in a pass",
            "Prompts and guesses included.",
            "none",
            share("dsd_verifier_fed_tokens_total", f"{PASS}_count", "instance"),
        ),
        panel(
            "Queue",
            "Tokens that wait to be computed; a full pass has DSD_TOKEN_BUDGET.",
            "none",
            "dsd_verifier_queue_tokens",
        ),
    ),
)
KV_CACHE = Row(
    "KV cache",
    (
        panel("Usage", "Reserved / all.", "percentunit", "dsd_verifier_kv_cache_usage_ratio"),
        panel("Waiting sessions", "Without KV cache.", "none", "dsd_verifier_num_requests_waiting"),
        panel(
            "Preemptions",
            "Sessions that lost their KV cache to an older one.",
            "cps",
            rate("dsd_verifier_num_preemptions_total", "instance"),
        ),
        panel(
            "Prefix cache",
            "Tokens copied instead of computed.",
            TOKENS_PER_S,
            rate("dsd_verifier_prefix_cache_hits_total", "instance"),
        ),
        panel("Free", "That a new session gets at once.", "suffix: tokens", "dsd_verifier_free_kv_tokens"),
        panel("Sessions", "Running.", "none", "dsd_verifier_num_requests_running"),
    ),
)
FAILURES = Row(
    "Failures",
    (
        panel(
            "Expired leases",
            "Sessions whose gateway fell silent, in the last hour.",
            "none",
            "increase(dsd_verifier_expired_sessions_total[1h])",
        ),
        panel(
            "Failed passes",
            "In the last hour; repeated session by session.",
            "none",
            "increase(dsd_verifier_failed_passes_total[1h])",
        ),
        panel("Committed tokens", "Per second.", TOKENS_PER_S, rate("dsd_verifier_committed_tokens_total", "instance")),
    ),
)
VERIFIER = Dashboard(
    "verifier",
    "DSD: verifiers",
    "Passes, batches and KV cache of the verifiers.",
    (FULL, PASSES, KV_CACHE, FAILURES),
)
