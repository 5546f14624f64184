{{- /* Generated from k8s/overlays/edge: python -m deploy.helm */ -}}
{{- define "edge.nats-config" }}
{{- if has "nats-tls" $.Values.components }}
cluster.conf: |
  # Routes between the three servers, which prove themselves to each other. routes.conf has the password and the servers' addresses.
  cluster {
    name: dsd
    port: 6222
    no_advertise: true
    include "routes.conf"
    tls {
      cert_file: "/etc/nats-own-tls/tls.crt"
      key_file: "/etc/nats-own-tls/tls.key"
      ca_file: "/etc/nats-own-tls/ca.crt"
      verify: true
    }
  }
{{- else }}
cluster.conf: |
  # Routes between the three servers. routes.conf has the password and the servers' addresses.
  cluster {
    name: dsd
    port: 6222
    no_advertise: true
    include "routes.conf"
  }
{{- end }}
controllers.conf: |
  # What a controller may publish and subscribe (docs/protocol.md). Made by: python -m services.local.nats_users rights controller controller
  rights-controller: {
    publish: [
      "dsd.v1.drafter.*.*.window.controller.*"
      "dsd.v1.heartbeat.controller.controller.*"
    ]
    subscribe: [
      "dsd.v1.report.drafter.>"
      "dsd.v1.heartbeat.verifier.>"
    ]
  }
  connections-controller: [STANDARD]
drafters.conf: "# What a drafter may publish and subscribe (docs/protocol.md). Made by: python -m services.local.nats_users rights drafter {{ $.Values.site }}-drafter-0 {{ $.Values.site }}-drafter-1\nrights-{{ $.Values.site }}-drafter-0: {\n  publish: [\n    \"dsd.v1.verifier.*.*.draft.{{ $.Values.site }}-drafter-0.*\"\n    \"dsd.v1.gateway.*.*.failure.{{ $.Values.site }}-drafter-0.*\"\n    \"dsd.v1.heartbeat.drafter.{{ $.Values.site }}-drafter-0.*\"\n    \"dsd.v1.report.drafter.{{ $.Values.site }}-drafter-0.*\"\n  ]\n  subscribe: [\n    \"dsd.v1.drafter.{{ $.Values.site }}-drafter-0.*.>\"\n    \"dsd.v1.heartbeat.controller.>\"\n  ]\n}\nconnections-{{ $.Values.site }}-drafter-0: [STANDARD]\n\nrights-{{ $.Values.site }}-drafter-1: {\n  publish: [\n    \"dsd.v1.verifier.*.*.draft.{{ $.Values.site }}-drafter-1.*\"\n    \"dsd.v1.gateway.*.*.failure.{{ $.Values.site }}-drafter-1.*\"\n    \"dsd.v1.heartbeat.drafter.{{ $.Values.site }}-drafter-1.*\"\n    \"dsd.v1.report.drafter.{{ $.Values.site }}-drafter-1.*\"\n  ]\n  subscribe: [\n    \"dsd.v1.drafter.{{ $.Values.site }}-drafter-1.*.>\"\n    \"dsd.v1.heartbeat.controller.>\"\n  ]\n}\nconnections-{{ $.Values.site }}-drafter-1: [STANDARD]\n"
gateways.conf: |
  # What a gateway may publish and subscribe (docs/protocol.md). Made by: python -m services.local.nats_users rights gateway gateway
  rights-gateway: {
    publish: [
      "dsd.v1.verifier.*.*.open.gateway.*"
      "dsd.v1.verifier.*.*.poll.gateway.*"
      "dsd.v1.verifier.*.*.close.gateway.*"
      "dsd.v1.drafter.*.*.speculate.gateway.*"
      "dsd.v1.drafter.*.*.close.gateway.*"
      "dsd.v1.heartbeat.gateway.gateway.*"
    ]
    subscribe: [
      "dsd.v1.gateway.gateway.*.>"
      "dsd.v1.heartbeat.verifier.>"
      "dsd.v1.heartbeat.drafter.>"
      "dsd.v1.heartbeat.controller.>"
      "dsd.v1.drafter.*.*.window.>"
    ]
  }
  connections-gateway: [STANDARD]
leaf.conf: |
  # Joins the cloud's NATS with this site's key. Set the cloud's name here.
  leafnodes {
    remotes: [
      {
        urls: ["tls://{{ $.Values.natsHost }}:7422"]
        include "leaf-key.conf"
        tls {
          ca_file: "/etc/nats/ca.crt"
        }
      }
    ]
  }
limits.conf: |
  # Settings of every NATS server of DSD. Limits of a connection: the bus sends parts of 64 KB, a service has up to 5
  # subscriptions, and the link of a site one for each of its drafters.
  max_payload: 64KB
  max_subscriptions: 1024

  # All clients of a server together. Further ones are refused; those that are there stay.
  max_connections: 2048

  ping_interval: "5s"
  ping_max: 2
  write_deadline: "5s"

  # On shutdown a server waits 10 s and then disconnects its clients one by one until 30 s have passed. They reconnect to
  # the other servers.
  lame_duck_grace_period: "10s"
  lame_duck_duration: "30s"
nats.conf: |
  # The server of an edge site. The Secret nats-auth has users.conf, leaf-key.conf and ca.crt (docs/deploy.md).
  include "limits.conf"
  include "leaf.conf"
  include "users.conf"
verifiers.conf: |
  # What a verifier may publish and subscribe (docs/protocol.md). Made by: python -m services.local.nats_users rights verifier verifier-0 verifier-1 verifier-2 verifier-3
  rights-verifier-0: {
    publish: [
      "dsd.v1.gateway.*.*.opened.verifier-0.*"
      "dsd.v1.gateway.*.*.verdict.verifier-0.*"
      "dsd.v1.gateway.*.*.failure.verifier-0.*"
      "dsd.v1.drafter.*.*.verdict.verifier-0.*"
      "dsd.v1.drafter.*.*.failure.verifier-0.*"
      "dsd.v1.heartbeat.verifier.verifier-0.*"
    ]
    subscribe: [
      "dsd.v1.verifier.verifier-0.*.>"
      "dsd.v1.heartbeat.gateway.>"
    ]
  }
  connections-verifier-0: [STANDARD]

  rights-verifier-1: {
    publish: [
      "dsd.v1.gateway.*.*.opened.verifier-1.*"
      "dsd.v1.gateway.*.*.verdict.verifier-1.*"
      "dsd.v1.gateway.*.*.failure.verifier-1.*"
      "dsd.v1.drafter.*.*.verdict.verifier-1.*"
      "dsd.v1.drafter.*.*.failure.verifier-1.*"
      "dsd.v1.heartbeat.verifier.verifier-1.*"
    ]
    subscribe: [
      "dsd.v1.verifier.verifier-1.*.>"
      "dsd.v1.heartbeat.gateway.>"
    ]
  }
  connections-verifier-1: [STANDARD]

  rights-verifier-2: {
    publish: [
      "dsd.v1.gateway.*.*.opened.verifier-2.*"
      "dsd.v1.gateway.*.*.verdict.verifier-2.*"
      "dsd.v1.gateway.*.*.failure.verifier-2.*"
      "dsd.v1.drafter.*.*.verdict.verifier-2.*"
      "dsd.v1.drafter.*.*.failure.verifier-2.*"
      "dsd.v1.heartbeat.verifier.verifier-2.*"
    ]
    subscribe: [
      "dsd.v1.verifier.verifier-2.*.>"
      "dsd.v1.heartbeat.gateway.>"
    ]
  }
  connections-verifier-2: [STANDARD]

  rights-verifier-3: {
    publish: [
      "dsd.v1.gateway.*.*.opened.verifier-3.*"
      "dsd.v1.gateway.*.*.verdict.verifier-3.*"
      "dsd.v1.gateway.*.*.failure.verifier-3.*"
      "dsd.v1.drafter.*.*.verdict.verifier-3.*"
      "dsd.v1.drafter.*.*.failure.verifier-3.*"
      "dsd.v1.heartbeat.verifier.verifier-3.*"
    ]
    subscribe: [
      "dsd.v1.verifier.verifier-3.*.>"
      "dsd.v1.heartbeat.gateway.>"
    ]
  }
  connections-verifier-3: [STANDARD]
{{- if has "nats-tls" $.Values.components }}
with-tls.conf: |
  # The overlay's configuration, with TLS for clients. The Secret nats-tls has the files.
  include "nats.conf"
  tls {
    cert_file: "/etc/nats-own-tls/tls.crt"
    key_file: "/etc/nats-own-tls/tls.key"
  }
{{- end }}
{{ end }}

{{- define "edge.service-settings" }}
DSD_HTTP_HOST: 0.0.0.0
DSD_HTTP_PORT: '8080'
DSD_LOG_FORMAT: json
DSD_NATS_NKEY_SEED: /etc/dsd/nkey.seed
{{- if has "nats-tls" $.Values.components }}
DSD_NATS_URL: tls://nats:4222
{{- else }}
DSD_NATS_URL: nats://nats:4222
{{- end }}
{{- if has "nats-tls" $.Values.components }}
DSD_NATS_CA: /etc/dsd/nats-tls/ca.crt
{{- end }}
{{ end }}

{{- define "edge.drafter-settings" }}
DSD_DRAFT: /var/lib/dsd/models/smollm2-135m/draft-int8
DSD_MODEL_NAME: smollm2-135m
{{ end }}

{{- define "edge.hub-models" }}
DRAFT: our-organization/our-draft
DRAFT_REVISION: main
TARGET: our-organization/our-target
TARGET_REVISION: main
{{ end }}
