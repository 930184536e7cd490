#!/usr/bin/env bash
# A kind cluster with AgentHive on it.
#
#   hack/kind.sh up      the cluster, the images, the chart and examples/hello; waits until all of it is ready
#   hack/kind.sh test    the end-to-end tests on it
#   hack/kind.sh down    deletes the cluster
#
# CLUSTER           its name; default: agenthive
# KIND_NODE_IMAGE   the node image, instead of kind-config.yaml's: another version of Kubernetes
# TIMEOUT           how long each step may wait; default: 300s
# PYTEST            what runs the tests; default: .venv/bin/pytest
# ENGINE, PYTHON_IMAGE, BUILD_FLAGS: as in hack/images.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CLUSTER=${CLUSTER:-agenthive}
TIMEOUT=${TIMEOUT:-300s}
NAMESPACE=agenthive-system
KUBECONFIG_FILE=$PWD/build/kind/$CLUSTER.kubeconfig
# kind load and the chart's defaults mean the short names.
unset IMAGE_PREFIX

fail() {
    echo "kind: $*" >&2
    exit 1
}

need() {
    command -v "$1" >/dev/null || fail "$1 is not installed. Get it from $2"
}

need_engine() {
    if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
        return
    fi
    if command -v podman >/dev/null && podman info >/dev/null 2>&1; then
        export KIND_EXPERIMENTAL_PROVIDER=podman
        return
    fi
    fail "kind runs its nodes in docker or podman, and neither works here. Install one of them" \
        "(https://docs.docker.com/engine/install, https://podman.io) and, for docker, start its daemon."
}

need_kind() {
    need kind "https://kind.sigs.k8s.io/docs/user/quick-start/#installation (v0.32.0 or newer)"
    need_engine
}

exists() {
    kind get clusters 2>/dev/null | grep -qxF "$CLUSTER"
}

up() {
    need_kind
    need kubectl https://kubernetes.io/docs/tasks/tools/
    need helm https://helm.sh/docs/intro/install/
    local archive archives flags=()
    mkdir -p build/kind
    # A broken build is known before there is a cluster to clean up.
    hack/images.sh build
    archives=$(hack/images.sh archive build/images)
    if exists; then
        echo "the cluster $CLUSTER is there already"
        kind export kubeconfig --name "$CLUSTER" --kubeconfig "$KUBECONFIG_FILE"
    else
        if [ -n "${KIND_NODE_IMAGE:-}" ]; then
            flags+=(--image "$KIND_NODE_IMAGE")
        fi
        kind create cluster --name "$CLUSTER" --config kind-config.yaml --kubeconfig "$KUBECONFIG_FILE" \
            --wait "$TIMEOUT" "${flags[@]}"
    fi
    export KUBECONFIG=$KUBECONFIG_FILE
    for archive in $archives; do
        kind load image-archive "$archive" --name "$CLUSTER"
    done
    helm upgrade --install agenthive charts/agenthive --namespace "$NAMESPACE" --create-namespace --wait \
        --timeout "$TIMEOUT"
    # Images of the same tag may be new ones.
    kubectl --namespace "$NAMESPACE" rollout restart deployment --selector app.kubernetes.io/instance=agenthive
    kubectl --namespace "$NAMESPACE" rollout status deployment --selector app.kubernetes.io/instance=agenthive \
        --timeout "$TIMEOUT"
    kubectl apply --kustomize examples/hello
    kubectl wait --for=condition=Ready hive/first --timeout "$TIMEOUT"
    kubectl wait --for=condition=Ready agent/hello --timeout "$TIMEOUT"
    kubectl get hives,agents,pods
    echo
    echo "It is ready. Next:"
    echo "  export KUBECONFIG=$KUBECONFIG_FILE"
    echo "  .venv/bin/kubectl-hive ask hello greet '{\"name\": \"Ada\"}'"
}

run_tests() {
    local pytest=${PYTEST:-.venv/bin/pytest}
    need_kind
    exists || fail "there is no cluster $CLUSTER: make kind-up makes it"
    [ -x "$pytest" ] || fail "$pytest is not there: make kind-test sets it up, or PYTEST names it"
    mkdir -p build/kind
    kind export kubeconfig --name "$CLUSTER" --kubeconfig "$KUBECONFIG_FILE"
    AGENTHIVE_E2E_KUBECONFIG=$KUBECONFIG_FILE "$pytest" tests/e2e "$@"
}

down() {
    need_kind
    kind delete cluster --name "$CLUSTER" --kubeconfig "$KUBECONFIG_FILE"
    rm -f "$KUBECONFIG_FILE"
}

command=${1:-}
case $command in
    up) up ;;
    test) shift && run_tests "$@" ;;
    down) down ;;
    *) fail "what to do? One of: up, test, down" ;;
esac
