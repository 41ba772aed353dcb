# Everything that a person or CI asks of this project. `make help` lists it.

GO ?= go

# gin without the codec for MessagePack, which nothing here speaks. Everything is compiled so, that its parts are compiled once.
export GOFLAGS := -tags=nomsgpack $(GOFLAGS)

# Tests with this name fill the machine: fork bombs, thousands of executions, floods, a clock that jumps, full disks. They
# would starve what runs beside them, so that make test leaves them out and make torture runs them one after the other.
TORTURE := ^TestTorture
TORTURED = $(sort $(dir $(shell grep -rlE 'func TestTorture' --include='*_test.go' .)))

# The tests of these packages drive the built commands, which have no race detector, or the processes of sandboxes. They are compiled as the commands are,
# so that their dependencies are compiled once. They mostly wait for other processes, so that more of them run side by side than there
# are processors.
DRIVEN = $(sort ./runner/sandbox/ $(dir $(shell grep -rl 'sidecartest[.]Main' --include='*_test.go' .)))
RACED = $(filter-out $(DRIVEN),$(addsuffix /,$(shell $(GO) list -f '.{{slice .ImportPath (len .Module.Path)}}' ./...)))
PLAINLY := CGO_ENABLED=0 $(GO) test -trimpath -vet=off -parallel 3
# make lint vets.
RACING := $(GO) test -race -vet=off

.PHONY: help build demo test torture lint bench bench-serve docs setup clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

build: ## Build both binaries into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/ ./cmd/...

demo: ## Run the example step against the reference platform and show its page
	@.ci/setup demo
	@$(MAKE) --no-print-directory build
	@examples/demo

test: build ## Set up what the tests need, then run every test but those of make torture
	@.ci/setup test
	KIZEN_TEST_BIN=$(CURDIR)/bin $(PLAINLY) -timeout 30m -skip '$(TORTURE)' $(DRIVEN)
	KIZEN_TEST_BIN=$(CURDIR)/bin $(RACING) -timeout 30m -skip '$(TORTURE)' $(RACED)
	@.ci/python -m mypy --config-file runner/python/pyproject.toml runner/python/kizen_runtime runner/python/*.py
	@.ci/pythons
	@echo "left to make torture:"; grep -rhoE 'func TestTorture[A-Za-z]+' --include='*_test.go' . | sed 's/func /  /' | sort

torture: build ## Run the tests that fill the machine, alone on it and one after the other
	@.ci/setup test
	KIZEN_TEST_BIN=$(CURDIR)/bin $(PLAINLY) -v -p 1 -timeout 60m -run '$(TORTURE)' $(filter $(DRIVEN),$(TORTURED))
	KIZEN_TEST_BIN=$(CURDIR)/bin $(RACING) -v -p 1 -timeout 60m -run '$(TORTURE)' $(filter-out $(DRIVEN),$(TORTURED))

lint: ## Check formatting, vet, staticcheck and a tidy go.mod
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not formatted: $$unformatted; run gofmt -w"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff

bench: ## Measure against the baselines of docs/performance.md
	@.ci/setup test
	$(GO) test -run '^$$' -bench . -benchtime 2s ./minter/ ./proxy/ ./policy/ ./telemetry/ ./internal/execution/
	$(GO) test -run '^$$' -bench '^Benchmark(Run|ColdStart|FirstCall|Ready|Memory|ProxyCommand)$$' -benchtime 2s ./cmd/kizen-sidecar/
	$(GO) test -run '^$$' -bench . -benchtime 60x ./runner/...

bench-serve: ## Measure serve under load beside starting Python for each request
	@.ci/setup test
	$(GO) test -run '^$$' -bench '^BenchmarkServe' -benchtime 1x -timeout 30m ./cmd/kizen-sidecar/

docs: ## Write docs/reference and THIRD_PARTY.md anew, from the command line's definitions and the modules of the binaries
	$(GO) test ./cmd/kizen-sidecar ./cmd/kizen-platform -run 'TestReferenceIsWhatTheCommandLineSays|TestThirdParty' -update

setup: ## Install what the tests need
	@.ci/setup test

clean: ## Remove what was built
	rm -rf bin .venv .cache artifacts
