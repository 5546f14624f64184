"""NATS, as the services see it: connections, messages, losses. Figures of the server itself are not here
(docs/monitoring.md)."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Row, panel, rate, stat

NOW = Row(
    "Now",
    (
        stat(
            "Disconnected",
            "Services without a connection to NATS.",
            "none",
            "count(dsd_bus_connected == 0) or vector(0)",
            "",
            1,
        ),
        stat("Messages", "Published by all services.", "suffix: msg/s", rate("dsd_bus_published_messages_total")),
        stat("Deliveries", "To handlers.", "suffix: msg/s", rate("dsd_bus_received_messages_total")),
        stat("Lost", "In the last hour.", "none", "sum(increase(dsd_bus_dropped_messages_total[1h]))", "", 1),
        stat("Reconnects", "In the last hour.", "none", "sum(increase(dsd_bus_reconnects_total[1h]))", "", 1),
        stat("Polls", "Of gateways after silence or a gap.", "suffix: msg/s", rate("dsd_gateway_polls_total")),
    ),
)
CONNECTIONS = Row(
    "Connections",
    (
        panel("Connected", "1: connected.", "none", "dsd_bus_connected"),
        panel("Reconnects", "In the last hour.", "none", "increase(dsd_bus_reconnects_total[1h])"),
        panel(
            "Errors",
            "That client or server reported.",
            "cps",
            rate("dsd_bus_errors_total", "instance, kind"),
            "{{instance}} {{kind}}",
        ),
    ),
)
MESSAGES = Row(
    "Messages",
    (
        panel(
            "Published", "By type.", "suffix: msg/s", rate("dsd_bus_published_messages_total", "message"), "{{message}}"
        ),
        panel(
            "Received", "By type.", "suffix: msg/s", rate("dsd_bus_received_messages_total", "message"), "{{message}}"
        ),
        panel("Lost", "By reason.", "suffix: msg/s", rate("dsd_bus_dropped_messages_total", "reason"), "{{reason}}"),
        panel("Published", "By instance.", "suffix: msg/s", rate("dsd_bus_published_messages_total", "instance")),
        panel(
            "Polls",
            "After silence or a gap: messages got lost, or a verifier is slow.",
            "suffix: msg/s",
            rate("dsd_gateway_polls_total", "instance"),
        ),
        panel(
            "Round trip",
            "From a drafter to a verifier and back.",
            "s",
            "dsd_drafter_rtt_seconds",
            "{{instance}} → {{verifier}}",
        ),
    ),
)
NATS = Dashboard(
    "nats",
    "DSD: NATS",
    "Connections, messages and losses on the bus, as the services see them.",
    (NOW, CONNECTIONS, MESSAGES),
)
