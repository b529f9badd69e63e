# orphanwatch: every habit of this repository is a target here; `make` lists them.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO       ?= go
BIN      := bin/orphanwatch
FUZZTIME ?= 30s
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# The version comes from git describe. Go's own stamp is added where git works
# (it fails the build in a checkout that belongs to somebody else).
BUILDVCS := $(shell git rev-parse --verify -q HEAD >/dev/null 2>&1 && echo auto || echo false)

GOLANGCI_VERSION := 2.15.0
TOOLS            := $(CURDIR)/bin/tools
GOLANGCI         := $(TOOLS)/golangci-lint
HELM_VERSION     := v3.22.0
HELM             := $(TOOLS)/helm

.PHONY: help
help: ## list these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: deps build ## the whole thing on throw-away servers, about 30 s
	$(BIN) demo

.PHONY: build
build: ## bin/orphanwatch, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(BUILDVCS) -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN) ./cmd/orphanwatch

.PHONY: test
test: deps ## all tests, against real servers
	$(GO) test -timeout 10m ./...

.PHONY: race
race: deps ## all tests under the race detector (needs a C compiler: apt-get install gcc libc6-dev)
	CGO_ENABLED=1 $(GO) test -race -timeout 20m ./...

.PHONY: lint
lint: tools ## golangci-lint with the import table of CONTRIBUTING.md
	$(GOLANGCI) run ./...

.PHONY: fmt
fmt: tools ## format as the linter wants it
	$(GOLANGCI) fmt ./...

.PHONY: bench
bench: deps ## latency, bulk, a million messages and rest of the whole daemon, then all benchmarks
	$(GO) test -count=1 -v -run '^TestMeasure' -timeout 20m ./wiring -measure
	$(GO) test -count=1 -v -run '^TestMillion$$' -timeout 10m ./reconciler/celery -million
	$(GO) test -count=1 -v -run '^TestMillionOrphans$$' -timeout 10m ./reconciler/postgres -million
	$(GO) test -run '^$$' -bench . -benchmem -timeout 30m ./...

.PHONY: e2e
e2e: deps ## the daemon against real servers: every scenario, 30 random schedules, 5 x stress
	$(GO) test -count=1 -v -timeout 30m ./wiring -model.checks=30 -stress.runs=5

.PHONY: fuzz
fuzz: ## every Fuzz… function, FUZZTIME (30s) each
	@list=$$($(GO) test -list '^Fuzz' ./... | awk '/^Fuzz/ { f[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, f[i]; n = 0 }'); \
	test -n "$$list" || { echo "no Fuzz function found" >&2; exit 1; }; \
	while read -r pkg name; do \
		echo "== $$pkg $$name"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null; \
	done <<< "$$list"

.PHONY: deploy-check
deploy-check: deps helm ## the Helm chart and what else is deployed, without cluster or container engine
	$(GO) test -count=1 -v -run '^TestTheUnit$$' ./deploy
	cd deploy/check && HELM=$(HELM) $(GO) test -count=1 -timeout 10m ./...

.PHONY: clean
clean: ## remove what was built (bin/tools too)
	rm -rf bin

# Not habits of their own:

.PHONY: deps
deps: # Redis, PostgreSQL, Celery and promtool, through apt where they are missing
	deploy/install-deps.sh
	deploy/install-promtool.sh

.PHONY: tools
tools: # golangci-lint, built once (about two minutes) and kept in bin/tools
	@if [ "$$($(GOLANGCI) version --short 2>/dev/null || true)" != "$(GOLANGCI_VERSION)" ]; then \
		echo "building golangci-lint $(GOLANGCI_VERSION) into bin/tools (once; about two minutes)" >&2; \
		GOBIN=$(TOOLS) GOFLAGS= CGO_ENABLED=0 $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI_VERSION); \
	fi

.PHONY: helm
helm: # built once (two to five minutes) and kept in bin/tools
	@if [ "$$($(GO) version -m $(HELM) 2>/dev/null | awk '$$1 == "mod" { print $$3 }')" != "$(HELM_VERSION)" ]; then \
		echo "building helm $(HELM_VERSION) into bin/tools (once; two to five minutes)" >&2; \
		GOBIN=$(TOOLS) GOFLAGS= CGO_ENABLED=0 $(GO) install helm.sh/helm/v3/cmd/helm@$(HELM_VERSION); \
	fi
