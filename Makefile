# Everything sets itself up: a machine with Python ≥ 3.11, pip and make is enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DIR    ?= .agenthive
# Test files run side by side, most of them waiting for processes: more workers than two cores would suggest.
WORKERS ?= 4

.DEFAULT_GOAL := help
.PHONY: help demo up down test e2e-cluster lint format crds rbac manifest schema docs docs-site chart-docs chart-scan golden bench soak clean \
	images images-test sbom kind-up kind-test kind-down

help:  ## What can be made
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## Start a hive on this machine, map the standard library, show what it cost, stop
	@$(BIN)/python examples/code-atlas/demo.py

up: $(STAMP)  ## Start the local control plane and leave it running
	@$(BIN)/agenthive local up --detach --dir $(DIR)

down: $(STAMP)  ## Stop what `make up` started; its state stays
	@$(BIN)/agenthive local down --dir $(DIR)

test: $(STAMP)  ## Every test, with coverage; ARGS='tests/unit -q' for a part, without the bound
	@rm -f .coverage .coverage.*
	@$(BIN)/pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder --cov --cov-report=term $(if $(ARGS),$(ARGS),--cov-fail-under=85)

e2e-cluster: $(STAMP)  ## The end-to-end tests on the cluster of KUBECONFIG, which has the CRDs and an operator
	@AGENTHIVE_E2E_KUBECONFIG=$(or $(KUBECONFIG),$(HOME)/.kube/config) $(BIN)/pytest tests/e2e $(ARGS)

lint: $(STAMP)  ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)  ## Let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

crds: $(STAMP)  ## Generate crds/ from the API models
	@$(BIN)/python -m agenthive_operator.api.crd crds

rbac: $(STAMP)  ## Generate charts/agenthive/files/rbac.yaml from the code's `# rbac:` comments
	@$(BIN)/python -m agenthive_operator.rbac > charts/agenthive/files/rbac.yaml

manifest:  ## dist/install.yaml from the chart, for kubectl apply; HELM names the helm to use
	@mkdir -p dist
	@{ printf 'apiVersion: v1\nkind: Namespace\nmetadata: {name: agenthive-system}\n'; \
	  $(or $(HELM),helm) template agenthive charts/agenthive --namespace agenthive-system --no-hooks; } > dist/install.yaml
	@echo "written: dist/install.yaml"

schema: $(STAMP)  ## Generate docs/message.schema.json from the protocol
	@$(BIN)/python -m agenthive.protocol > docs/message.schema.json

docs: schema chart-docs  ## Generate from the code: reference, conditions, metrics, the message schema; the chart's README
	@$(BIN)/python -m hack.reference docs/reference
	@$(BIN)/python -m agenthive_operator.reconcile.conditions > docs/conditions.md
	@$(BIN)/python -m agenthive.telemetry > docs/metrics.md
	@$(BIN)/python -m agenthive_operator.metrics > docs/operator-metrics.md

chart-docs: $(STAMP)  ## Generate charts/agenthive/README.md from Chart.yaml and the comments in values.yaml
	@$(BIN)/python hack/chart_readme.py > charts/agenthive/README.md

chart-scan:  ## Have checkov scan what the chart renders; HELM names the helm to use
	@hack/chart-scan.sh

golden: $(STAMP)  ## Write the golden files of plans and of the chart anew; HELM names the helm to use
	@UPDATE_GOLDEN=1 $(BIN)/pytest -q tests/unit/plan/test_golden.py tests/chart/test_manifests.py -k golden

docs-site: $(STAMP)  ## Build docs/ as a site, strictly, into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "written: build/site/index.html"

bench: $(STAMP)  ## Measure; ONLY=bus limits it
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'  # the first with --group
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

soak: $(STAMP)  ## Load the bus for SECONDS=300 while consumers die; fail if anything grows or stays
	@$(BIN)/python -m benchmarks.soak --seconds $(or $(SECONDS),300)

images:  ## Build agenthive-operator and agenthive-runtime by buildah, podman or docker; IMAGE_PREFIX=registry/team/
	@hack/images.sh build

sbom:  ## A CycloneDX bill of materials of each image, in build/sbom
	@hack/images.sh sbom build/sbom

images-test: $(STAMP)  ## Build the images with buildah and run the example in them (root, runc)
	@AGENTHIVE_TEST_IMAGES=1 $(BIN)/pytest tests/images $(ARGS)

kind-up:  ## A kind cluster with the images, the chart and examples/hello, ready
	@hack/kind.sh up

kind-test: $(STAMP)  ## The end-to-end tests on that cluster
	@PYTEST=$(BIN)/pytest hack/kind.sh test $(ARGS)

kind-down:  ## Delete that cluster
	@hack/kind.sh down

clean:  ## Remove the virtual environment and what was built
	rm -rf $(VENV) build dist .coverage .coverage.*
