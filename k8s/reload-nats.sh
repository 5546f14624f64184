#!/bin/sh
# k8s/reload-nats.sh FILE: brings a changed file of the Secret nats-auth to all NATS servers of the cluster at once.
# Returns when each was told to read it. Without this, servers notice a changed Secret within two minutes.
set -eu
file=/etc/nats/$(basename "$1")
content=$(sha256sum < "$1")
kubectl -n dsd annotate pods -l app.kubernetes.io/name=nats --overwrite "dsd/reloaded=$(date +%s)" # the kubelet looks now
for pod in $(kubectl -n dsd get pods -l app.kubernetes.io/name=nats -o name); do
    kubectl -n dsd exec "$pod" -c nats -- timeout 180 sh -c \
        "until [ \"\$(sha256sum < $file)\" = '$content' ]; do sleep 1; done; nats-server --signal reload=/run/nats/nats.pid"
done
