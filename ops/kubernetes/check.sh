#!/bin/sh
# The manifests against the schemas of Kubernetes, without a cluster. Needs kubectl; its own environment
# is made once. There is no schema of KEDA's two objects in it.
set -eu
folder=$(dirname "$0")
home=${XDG_CACHE_HOME:-$HOME/.cache}/marco-search/kubernetes-validate-1.37.0
[ -x "$home/bin/kubernetes-validate" ] || {
    python3 -m venv "$home"
    "$home/bin/pip" -q install kubernetes-validate==1.37.0
}
kubectl kustomize "$folder" | "$home/bin/kubernetes-validate" --strict -k "${1:-1.33}" -
