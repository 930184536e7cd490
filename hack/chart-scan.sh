#!/usr/bin/env bash
# Renders the chart for each file of its ci/ and has checkov scan that: its policies for Kubernetes, but for the exceptions
# in hack/checkov.yaml. checkov weighs 300 MB, so it has an environment of its own and no part in `make test`.
#
# HELM    the helm to use (default: the one on PATH)
# PYTHON  the Python to make the environment with (default: python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

helm=${HELM:-helm}
command -v "$helm" >/dev/null || { echo "no helm: install it, or name it by HELM=/path/to/helm" >&2; exit 1; }
if [ ! -x build/checkov/bin/checkov ]; then
    echo "setting up build/checkov (once, some minutes)"
    "${PYTHON:-python3}" -m venv build/checkov
    build/checkov/bin/pip install --quiet --disable-pip-version-check checkov==3.3.30
fi
rm -rf build/chart-scan
mkdir -p build/chart-scan
for values in charts/agenthive/ci/*-values.yaml; do
    case=$(basename "$values" -values.yaml)
    "$helm" template "$case" charts/agenthive --namespace system --values "$values" >"build/chart-scan/$case.yaml" 2>build/chart-scan.log ||
        { cat build/chart-scan.log >&2; exit 1; }
done
build/checkov/bin/checkov --config-file hack/checkov.yaml --directory build/chart-scan
echo "checkov finds nothing beyond the exceptions in hack/checkov.yaml"
