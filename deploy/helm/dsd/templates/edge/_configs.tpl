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
  server_name: $SERVER_NAME
  include "limits.conf"
  include "leaf.conf"
  include "users.conf"
{{- if has "nats-tls" $.Values.components }}
with-tls.conf: |
  # The overlay's configuration, with TLS for clients. The Secret nats-tls has the files.
  include "nats.conf"
  tls {
    cert_file: "/etc/nats/own.crt"
    key_file: "/etc/nats/own.key"
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

{{- define "edge.hub-draft" }}
DRAFT: our-organization/our-draft
DRAFT_REVISION: main
{{ end }}
