"""All dashboards."""

from __future__ import annotations

from deploy.grafana.fleet import FLEET
from deploy.grafana.nats import NATS
from deploy.grafana.panels import Dashboard
from deploy.grafana.requests import REQUESTS
from deploy.grafana.speculation import SPECULATION
from deploy.grafana.verifier import VERIFIER

DASHBOARDS: tuple[Dashboard, ...] = (FLEET, REQUESTS, SPECULATION, VERIFIER, NATS)
