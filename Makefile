# Everything that a person or CI asks of this project. `make help` lists it.

GO ?= go

.PHONY: help build demo test lint bench bench-serve docs setup clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

build: ## Build both binaries into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/...

demo: ## Run the example step against the reference platform and show its page
	@.ci/setup demo
	@$(MAKE) --no-print-directory build
	@examples/demo

test: ## Set up what the tests need, then run every test
	@.ci/setup test
	$(GO) test -race -timeout 30m ./...
	@.ci/python -m mypy --config-file runner/python/pyproject.toml runner/python/kizen_runtime runner/python/*.py
	@.ci/pythons

lint: ## Check formatting, vet, staticcheck and a tidy go.mod
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not formatted: $$unformatted; run gofmt -w"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff

bench: ## Measure against the baselines of docs/performance.md
	@.ci/setup test
	$(GO) test -run '^$$' -bench . -benchtime 2s ./minter/ ./proxy/ ./policy/ ./telemetry/ ./cmd/kizen-sidecar/internal/execution/
	$(GO) test -run '^$$' -bench '^Benchmark(Run|ColdStart|FirstCall|Ready|Memory|ProxyCommand)$$' -benchtime 2s ./cmd/kizen-sidecar/
	$(GO) test -run '^$$' -bench . -benchtime 60x ./runner/...

bench-serve: ## Measure serve under load beside starting Python for each request
	@.ci/setup test
	$(GO) test -run '^$$' -bench '^BenchmarkServe' -benchtime 1x -timeout 30m ./cmd/kizen-sidecar/

docs: ## Write docs/reference anew from the command line's definitions
	$(GO) test ./cmd/kizen-sidecar ./cmd/kizen-platform -run TestReferenceIsWhatTheCommandLineSays -update

setup: ## Install what the tests need
	@.ci/setup test

clean: ## Remove what was built
	rm -rf bin .venv .cache artifacts
