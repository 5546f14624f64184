"""Names of spans, events and attributes: those of OpenTelemetry's conventions, and DSD's own, which begin with dsd.

Invariant: no other module spells one, since the conventions for generative AI (gen_ai.*) still change.
"""

from __future__ import annotations

# Spans. That of a request is named "<operation> <model>".
READ, TOKENISE, QUEUED, SESSION, SEND = "read", "tokenise", "queued", "session", "send"
PREFILL, DECODE, FAILOVER = "prefill", "decode", "failover"
VERIFY, DRAFT = "verify", "draft"

# Events
REBOUND = "rebound"  # a session goes on at the same verifier, with another drafter or after a loss
WAITS_FOR_KV, HAS_KV = "waits for KV cache", "has KV cache"

# Values
CHAT, TEXT_COMPLETION = "chat", "text_completion"
PROVIDER = "dsd"

# The conventions of OpenTelemetry
OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_CHOICES = "gen_ai.request.choice.count"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_SEED = "gen_ai.request.seed"
REQUEST_STREAM = "gen_ai.request.stream"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
METHOD, ROUTE, STATUS = "http.request.method", "http.route", "http.response.status_code"
ERROR_TYPE = "error.type"

# DSD's own
SESSION_ID, CHOICE, TERM = "dsd.session.id", "dsd.choice", "dsd.term"
SPECULATION = "dsd.speculation"  # off, adaptive or static
VERIFIER, DRAFTER, GATEWAY = "dsd.verifier", "dsd.drafter", "dsd.gateway"  # instances
LOST_VERIFIER = "dsd.verifier.lost"
FINGERPRINTS = "dsd.fingerprints"
NUM_FAILOVERS, NUM_REBINDINGS, NUM_POLLS = "dsd.failovers", "dsd.rebindings", "dsd.polls"
ACCEPTED, REJECTED = "dsd.guesses.accepted", "dsd.guesses.rejected"
LOOKED_UP = "dsd.guesses.looked_up"
LATE, DISCARDED = "dsd.guesses.late", "dsd.guesses.discarded"
DRAFTED, WINDOW, RTT_MS = "dsd.guesses.drafted", "dsd.window", "dsd.rtt_ms"
NUM_PASSES = "dsd.passes"  # that committed tokens of the session
NUM_STEPS, FED_TOKENS, COMPUTE_MS = "dsd.model.steps", "dsd.model.fed_tokens", "dsd.model.compute_ms"
