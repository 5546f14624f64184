{{- /* Generated from k8s/overlays/cloud: python -m deploy.helm */ -}}
{{- define "cloud.controller-file" }}
controller.toml: |
  # The window policy (docs/awc.md). Accepts every setting of the window controller.
  window_policy = "adaptive"
{{ end }}

{{- define "cloud.controller-settings" }}
DSD_CONFIG_FILE: /etc/dsd/controller/controller.toml
{{ end }}

{{- define "cloud.gateway-settings" }}
DSD_API_KEYS_FILE: /etc/dsd/keys/keys.toml
DSD_DRAIN_S: '600'
DSD_MODEL_NAME: smollm2-135m
DSD_SESSION_TIMEOUT_S: '180'
DSD_TARGET: /var/lib/dsd/models/smollm2-135m/target
{{ end }}

{{- define "cloud.nats-config" }}
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
drafters.conf: |
  # What a drafter may publish and subscribe (docs/protocol.md). Made by: python -m services.local.nats_users rights drafter drafter-0 drafter-1
  rights-drafter-0: {
    publish: [
      "dsd.v1.verifier.*.*.draft.drafter-0.*"
      "dsd.v1.gateway.*.*.failure.drafter-0.*"
      "dsd.v1.heartbeat.drafter.drafter-0.*"
      "dsd.v1.report.drafter.drafter-0.*"
    ]
    subscribe: [
      "dsd.v1.drafter.drafter-0.*.>"
      "dsd.v1.heartbeat.controller.>"
    ]
  }
  connections-drafter-0: [STANDARD]

  rights-drafter-1: {
    publish: [
      "dsd.v1.verifier.*.*.draft.drafter-1.*"
      "dsd.v1.gateway.*.*.failure.drafter-1.*"
      "dsd.v1.heartbeat.drafter.drafter-1.*"
      "dsd.v1.report.drafter.drafter-1.*"
    ]
    subscribe: [
      "dsd.v1.drafter.drafter-1.*.>"
      "dsd.v1.heartbeat.controller.>"
    ]
  }
  connections-drafter-1: [STANDARD]
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
leafnodes.conf: |
  # Entry for the leaf nodes of edge sites. Each is one user with its site's rights (sites.conf).
  leafnodes {
    port: 7422
    no_advertise: true
    tls {
      cert_file: "/etc/nats-tls/tls.crt"
      key_file: "/etc/nats-tls/tls.key"
    }
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
  # One of three servers that edge sites join. The Secret nats-auth has users.conf and routes.conf (docs/deploy.md).
  include "limits.conf"
  include "cluster.conf"
  include "leafnodes.conf"
  include "users.conf"
sites.conf: |
  # What a drafter may publish and subscribe (docs/protocol.md). Made by: python -m services.local.nats_users rights drafter site-a-drafter-0 site-a-drafter-1 --together site-a
  rights-site-a: {
    publish: [
      "dsd.v1.verifier.*.*.draft.site-a-drafter-0.*"
      "dsd.v1.gateway.*.*.failure.site-a-drafter-0.*"
      "dsd.v1.heartbeat.drafter.site-a-drafter-0.*"
      "dsd.v1.report.drafter.site-a-drafter-0.*"
      "dsd.v1.verifier.*.*.draft.site-a-drafter-1.*"
      "dsd.v1.gateway.*.*.failure.site-a-drafter-1.*"
      "dsd.v1.heartbeat.drafter.site-a-drafter-1.*"
      "dsd.v1.report.drafter.site-a-drafter-1.*"
    ]
    subscribe: [
      "dsd.v1.drafter.site-a-drafter-0.*.>"
      "dsd.v1.heartbeat.controller.>"
      "dsd.v1.drafter.site-a-drafter-1.*.>"
    ]
  }
  connections-site-a: [LEAFNODE]
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

{{- define "cloud.service-settings" }}
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

{{- define "cloud.verifier-settings" }}
DSD_DRAIN_S: '60'
DSD_ENGINE: vllm
DSD_MODEL_NAME: smollm2-135m
DSD_PREFILL_CHUNK: '512'
DSD_TARGET: /var/lib/dsd/models/smollm2-135m/target
DSD_TOKEN_BUDGET: '2048'
{{- if has "many-nodes" $.Values.components }}
DSD_VLLM_ARGS: --distributed-executor-backend ray --tensor-parallel-size 8
{{- else }}
{{- if has "many-gpus" $.Values.components }}
DSD_VLLM_ARGS: --tensor-parallel-size 4
{{- end }}
{{- end }}
{{ end }}

{{- define "cloud.hub-models" }}
DRAFT: our-organization/our-draft
DRAFT_REVISION: main
TARGET: our-organization/our-target
TARGET_REVISION: main
{{ end }}
