# Targets for developers and CI. `make help` lists them.

GO ?= go

# Build gin without its unused MessagePack codec. All targets, and the go commands that tests start, use the same flags, so
# that packages are compiled once.
export GOFLAGS := -tags=nomsgpack -trimpath $(GOFLAGS)
export CGO_ENABLED := 0

# Tests with this name exhaust the machine: fork bombs, thousands of executions, floods, a clock that jumps, full disks.
# They would starve other tests, so make test skips them, and make torture runs them one after the other.
TORTURE := ^TestTorture
TORTURED = $(sort $(dir $(shell grep -rlE 'func TestTorture' --include='*_test.go' .)))

# The tests with the heaviest dependencies (a browser, a collector, Kubernetes) and the tools of lint are modules of their own,
# so that an importer of client or minter does not inherit them. ./... ends at a module: each target names all of them.
E2E := internal/e2e
MODULES := . $(E2E) internal/tools
STATICCHECK := $(GO) tool -modfile=$(CURDIR)/internal/tools/go.mod staticcheck

# The tests of these packages drive the built commands, which have no race detector, or the processes of sandboxes.
DRIVEN = $(filter-out ./$(E2E)/%,$(sort ./runner/sandbox/ $(dir $(shell grep -rl 'sidecartest[.]Main' --include='*_test.go' .))))
PACKAGES = $(addsuffix /,$(shell $(GO) list -f '.{{slice .ImportPath (len .Module.Path)}}' ./...))
# The longest packages come first, that the others run beside them. Tests are compiled as the commands are, so that their
# dependencies are compiled once; make lint vets. Most tests wait for other processes, so that more of them run side by side
# than there are processors.
TESTING := $(GO) test -vet=off -parallel 3
RACING := CGO_ENABLED=1 $(GO) test -race -vet=off

.PHONY: help build demo test test-packages test-e2e test-python race pythons torture lint bench bench-serve bench-fleet docs setup clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

build: ## Build both binaries into bin/
	$(GO) build -ldflags "-s -w" -o bin/ ./cmd/...

demo: ## Run the example step against the reference platform and show its page
	@.ci/setup demo
	@$(MAKE) --no-print-directory build
	@examples/demo

test: build ## Set up what the tests need, then run every test once, but those of make torture
	@.ci/setup test
	@$(MAKE) --no-print-directory -j 2 test-packages test-python
	@echo "left to make race and make pythons: the same tests under the race detector, and on other versions of Python"
	@echo "left to make torture:"; grep -rhoE 'func TestTorture[A-Za-z]+' --include='*_test.go' . | sed 's/func /  /' | sort

test-packages: build
	KIZEN_TEST_BIN=$(CURDIR)/bin $(TESTING) -timeout 30m -skip '$(TORTURE)' $(DRIVEN) $(filter-out $(DRIVEN),$(PACKAGES))

test-e2e: build
	cd $(E2E) && KIZEN_TEST_BIN=$(CURDIR)/bin $(TESTING) -p 1 -timeout 30m -skip '$(TORTURE)' ./...

# The harness's tests follow those of internal/e2e, that two of the three groups run at a time.
test-python: test-e2e
	@.ci/python -m mypy --config-file runner/python/pyproject.toml runner/python/kizen_runtime runner/python/*.py
	@.ci/python -m pytest -q -p no:cacheprovider runner/python/tests

race: ## Run the packages' tests under the race detector, but those that drive processes
	@.ci/setup test
	$(RACING) -timeout 30m -skip '$(TORTURE)' $(filter-out $(DRIVEN),$(PACKAGES))

pythons: ## Run the harness's tests on each supported version of Python
	@.ci/setup test
	@.ci/pythons

torture: build ## Run the tests that exhaust the machine, one at a time
	@.ci/setup test
	KIZEN_TEST_BIN=$(CURDIR)/bin $(TESTING) -v -p 1 -timeout 60m -run '$(TORTURE)' $(filter-out ./$(E2E)/%,$(TORTURED))
	cd $(E2E) && KIZEN_TEST_BIN=$(CURDIR)/bin $(TESTING) -v -p 1 -timeout 60m -run '$(TORTURE)' ./...

lint: ## Check formatting, vet, staticcheck and a tidy go.mod, of every module
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not formatted: $$unformatted; run gofmt -w"; exit 1; fi
	$(GO) vet ./...
	cd $(E2E) && $(GO) vet ./...
	$(STATICCHECK) ./...
	cd $(E2E) && $(STATICCHECK) ./...
	@set -e; for module in $(MODULES); do echo "go mod tidy -diff in $$module"; (cd $$module && $(GO) mod tidy -diff); done

bench: ## Measure against the baselines of docs/performance.md
	@.ci/setup test
	$(GO) test -run '^$$' -bench . -benchtime 2s ./minter/ ./proxy/ ./policy/ ./telemetry/ ./internal/execution/
	$(GO) test -run '^$$' -bench '^Benchmark(Run|ColdStart|FirstCall|Ready|Memory)$$' -benchtime 2s ./cmd/kizen-sidecar/
	cd $(E2E) && $(GO) test -run '^$$' -bench '^BenchmarkProxyCommand$$' -benchtime 2s ./load/
	$(GO) test -run '^$$' -bench . -benchtime 60x ./runner/...

bench-serve: ## Measure serve under load beside starting Python for each request
	@.ci/setup test
	cd $(E2E) && $(GO) test -run '^$$' -bench '^BenchmarkServe' -benchtime 1x -timeout 30m ./load/

bench-fleet: ## Measure what an execution of a fleet costs its Redis
	@.ci/setup test
	$(GO) test -run '^$$' -bench '^BenchmarkFleetOnRedis$$' -benchtime 1x ./internal/fleet/

docs: ## Regenerate docs/reference and THIRD_PARTY.md
	$(GO) test ./cmd/kizen-sidecar ./cmd/kizen-platform -run 'TestReferenceIsUpToDate|TestThirdParty' -update

setup: ## Install the test dependencies
	@.ci/setup test

clean: ## Remove build artifacts
	rm -rf bin .venv .cache artifacts
