"""Speculation: what it gains, what it wastes, and how far drafters run ahead."""

from __future__ import annotations

from deploy.grafana.panels import TOKENS_PER_S, Dashboard, Panel, Query, Row, mean, panel, rate, share, stat

GUESSES = "dsd_verifier_guesses_total"
JUDGED, RIGHT = f'{GUESSES}{{fate=~"accepted|late|rejected"}}', f'{GUESSES}{{fate=~"accepted|late"}}'
IN_TIME, WASTED = f'{GUESSES}{{fate="accepted"}}', f'{GUESSES}{{fate!="accepted"}}'
PASS, TPOT = "dsd_verifier_pass_seconds", "dsd_gateway_request_time_per_output_token_seconds"
LENGTH = share("dsd_gateway_generation_tokens_total", "dsd_gateway_passes_total")
GAIN = f"({mean(PASS)}) / ({mean(TPOT)})"
COST = share("dsd_verifier_fed_tokens_total", "dsd_verifier_committed_tokens_total")

WORTH = Row(
    "Is it worth it now?",
    (
        stat(
            "Gain",
            "Mean pass time / mean TPOT. The target alone stays just below 1; near 1, speculation gains nothing.",
            "none",
            GAIN,
        ),
        stat("Acceptance length", "Tokens that a pass commits to a session. 1: nothing is gained.", "none", LENGTH),
        stat(
            "Acceptance",
            "Right guesses / compared guesses: a property of the draft model.",
            "percentunit",
            share(RIGHT, JUDGED),
        ),
        stat("In time", "Accepted / right guesses: network and window.", "percentunit", share(IN_TIME, RIGHT)),
        stat(
            "Waste",
            "Guesses that were not accepted / guesses that reached a verifier.",
            "percentunit",
            share(WASTED, GUESSES),
        ),
        stat("Computed per token", "Tokens computed / tokens committed, prompts included.", "none", COST),
    ),
)
OVER_TIME = Row(
    "Over time",
    (
        Panel(
            "Gain",
            "Mean pass time / mean TPOT; and tokens that a pass commits to a session.",
            "none",
            (Query(GAIN, "pass time / TPOT"), Query(LENGTH, "acceptance length")),
        ),
        Panel(
            "Acceptance",
            "Acceptance, and the share of right guesses in time.",
            "percentunit",
            (Query(share(RIGHT, JUDGED), "acceptance"), Query(share(IN_TIME, RIGHT), "in time")),
        ),
        panel(
            "Fates", "What became of guesses that reached a verifier.", TOKENS_PER_S, rate(GUESSES, "fate"), "{{fate}}"
        ),
    ),
)
PAIRS = Row(
    "Pairs of drafter and verifier",
    (
        panel(
            "Window",
            "Guesses that may be without a verdict. 0: the pair pauses.",
            "none",
            "dsd_drafter_window_tokens",
            "{{instance}} → {{verifier}}",
        ),
        panel(
            "Least confidence",
            "A guess below it ends a window.",
            "percentunit",
            "dsd_drafter_min_confidence_ratio",
            "{{instance}} → {{verifier}}",
        ),
        panel(
            "Round trip",
            "Without the time that the verifier held the draft.",
            "s",
            "dsd_drafter_rtt_seconds",
            "{{instance}} → {{verifier}}",
        ),
    ),
)
SPEED = Row(
    "Guess or pass: what takes longer?",
    (
        Panel(
            "Times",
            "A drafter must make a window of guesses in the time of a pass.",
            "s",
            (
                Query(mean(PASS, "instance"), "pass of {{instance}}"),
                Query(mean("dsd_drafter_step_seconds", "instance"), "step of {{instance}}"),
            ),
        ),
        panel(
            "Sessions in a step",
            "That share a step of the draft model.",
            "none",
            mean("dsd_drafter_step_sessions", "instance"),
        ),
        panel(
            "Unsure guesses",
            "That ended a window early.",
            TOKENS_PER_S,
            rate("dsd_drafter_unsure_guesses_total", "instance"),
        ),
    ),
)
CONTROLLER = Row(
    "Window control",
    (
        panel("Mean window", "Of the announced decisions.", "none", mean("dsd_controller_window_tokens", "instance")),
        panel("Reports", "Used for decisions.", "cps", rate("dsd_controller_reports_total", "instance")),
        panel(
            "Failed decisions",
            "Of the policy; the pair keeps its last decision.",
            "cps",
            rate("dsd_controller_failed_decisions_total", "instance"),
        ),
    ),
)
SPECULATION = Dashboard(
    "speculation",
    "DSD: speculation",
    "What speculation gains and wastes, and how far drafters run ahead.",
    (WORTH, OVER_TIME, PAIRS, SPEED, CONTROLLER),
)
