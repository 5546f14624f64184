#!/bin/sh
# k8s/reload-nats.sh FILE: brings a changed file of the Secret nats-auth to all NATS servers of the cluster at once.
# Returns when each has read it; fails, with the server's reason, if one does not. Without this, servers notice a changed
# Secret within two minutes. Another namespace than dsd: NAMESPACE=….
set -eu
NAMESPACE=${NAMESPACE:-dsd}
file=/etc/nats/$(basename "$1")
content=$(openssl dgst -sha256 -r < "$1" | cut -c1-64)
of_nats=app.kubernetes.io/name=nats

# Status 3: Kubernetes has not brought the file. 4: the server has not taken it, since this time stays as it was.
in_pod="
loaded() { wget -q -O - http://127.0.0.1:8222/varz | grep '\"config_load_time\"'; }
timeout 180 sh -c 'until sha256sum < $file | grep -q ^$content; do sleep 1; done' || exit 3
before=\$(loaded) && nats-server --signal reload=/run/nats/nats.pid || exit 4
for try in 1 2 3 4 5 6 7 8 9 10; do
    now=\$(loaded) && [ \"\$now\" != \"\$before\" ] && exit 0
    sleep 1
done
exit 4"

kubectl -n "$NAMESPACE" annotate pods -l $of_nats --overwrite "dsd/reloaded=$(date +%s)" # the kubelet looks now
pods=$(kubectl -n "$NAMESPACE" get pods -l $of_nats -o name)
[ -n "$pods" ] || { echo "no NATS pods in the namespace $NAMESPACE" >&2; exit 1; }
status=0
for pod in $pods; do
    found=0
    kubectl -n "$NAMESPACE" exec "$pod" -c nats -- sh -c "$in_pod" || found=$?
    [ $found -eq 0 ] && continue
    status=1
    echo "$pod has not read $file" >&2
    [ $found -eq 3 ] && echo "Kubernetes has not brought it within 180 s" >&2 && continue
    kubectl -n "$NAMESPACE" logs "$pod" -c nats --since=5m | grep 'Failed to reload' | tail -n 1 >&2 || true
done
exit $status
