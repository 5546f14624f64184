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
DSD_TARGET: /var/lib/dsd/models/smollm2-135m/target
{{- if has "websocket" $.Values.components }}
DSD_DRAFTER_NATS_URL: "wss://{{ $.Values.draftersHost }}"
{{- end }}
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
      cert_file: "/etc/nats/own.crt"
      key_file: "/etc/nats/own.key"
      ca_file: "/etc/nats/own-ca.crt"
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
leafnodes.conf: |
  # Entry for the leaf nodes of edge sites. Each is one user with its site's rights (sites.conf, in users.conf).
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
{{- if has "websocket" $.Values.components }}
nats.conf: |
  # One of three servers that edge sites join. The Secret nats-auth has users.conf and routes.conf (docs/deploy.md).
  server_name: $SERVER_NAME
  include "limits.conf"
  include "cluster.conf"
  include "leafnodes.conf"
  include "websocket.conf"
  include "users.conf"
{{- else }}
nats.conf: |
  # One of three servers that edge sites join. The Secret nats-auth has users.conf and routes.conf (docs/deploy.md).
  server_name: $SERVER_NAME
  include "limits.conf"
  include "cluster.conf"
  include "leafnodes.conf"
  include "users.conf"
{{- end }}
{{- if has "nats-tls" $.Values.components }}
with-tls.conf: |
  # The overlay's configuration, with TLS for clients. The Secret nats-tls has the files.
  include "nats.conf"
  tls {
    cert_file: "/etc/nats/own.crt"
    key_file: "/etc/nats/own.key"
  }
{{- end }}
{{- if has "websocket" $.Values.components }}
websocket.conf: |
  # Entry for users' own drafters. The Ingress ends TLS; every other user is refused here (allowed_connection_types).
  websocket {
    port: 8080
    no_tls: true
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
TARGET: our-organization/our-target
TARGET_REVISION: main
{{ end }}
