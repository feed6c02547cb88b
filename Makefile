# `make demo` and `make test` do everything on a fresh machine that has Rust and Python 3.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
CARGO ?= cargo
TOOLS := target/tools
DENY_VERSION := 0.20.2

.PHONY: help demo test ahead ahead-release ahead-tests fmt lint doc deny unit faults mlserver page chart image release bench guard fuzz soak tools fmt-fix clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

demo: ## see the shim at work: no cluster, no Python, no network
	$(CARGO) run --quiet --locked -- demo $(ARGS)

test: fmt ahead lint doc deny unit mlserver page chart image guard ## every check there is

# What takes long is built first, in two lanes: much of the release build and of the tools keeps one core only. No
# test runs meanwhile; each finds its part built and builds it itself where it is called alone.
ahead:
	@$(MAKE) --no-print-directory ahead-release & lane=$$!; \
	$(MAKE) --no-print-directory ahead-tests || { kill $$lane; exit 1; }; \
	wait $$lane

ahead-release:
	@$(MAKE) --no-print-directory release
	@$(MAKE) --no-print-directory $(TOOLS)/bin/cargo-deny
	./tests/chart/setup.sh

ahead-tests:
	@$(MAKE) --no-print-directory lint
	$(CARGO) test --locked --no-run
	./tests/mlserver/setup.sh

fmt:
	$(CARGO) fmt --check

fmt-fix: ## format the code
	$(CARGO) fmt

lint: ## clippy on all targets, warnings denied, with and without the demo
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features -- -D warnings

doc: ## documentation without warnings, private items included
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items --quiet

deny: $(TOOLS)/bin/cargo-deny ## licences, sources and bans of every dependency
	$(TOOLS)/bin/cargo-deny --log-level error check bans licenses sources

# A tool that runs for a second needs no optimisation, which is most of its build.
$(TOOLS)/bin/cargo-deny: export CARGO_PROFILE_RELEASE_OPT_LEVEL := 0
$(TOOLS)/bin/cargo-deny: export CARGO_PROFILE_RELEASE_LTO := off
$(TOOLS)/bin/cargo-deny: export CARGO_PROFILE_RELEASE_CODEGEN_UNITS := 16
$(TOOLS)/bin/cargo-deny:
	$(CARGO) install cargo-deny --locked --version $(DENY_VERSION) --root $(TOOLS) --target-dir target/deny-build --quiet
	rm -rf target/deny-build

unit: tools ## unit and integration tests
	$(CARGO) test --locked

faults: ## the whole fault matrix with all pairs, about ten minutes; every call of it in target/faults
	rm -rf target/faults
	FAULTS_FULL=1 FAULTS_BOOK=$(CURDIR)/target/faults \
	  $(CARGO) test --locked --test it faults:: -- --nocapture --test-threads 1

mlserver: ## tests against the real MLServer
	$(CARGO) build --locked
	./tests/mlserver/setup.sh
	$(CARGO) test --locked --test it real_server
	target/mlserver-venv/bin/python -m pytest tests/mlserver -q

chart: tools ## the Helm chart: schemas, golden files, the merged pod, alerts, kustomize
	$(CARGO) build --locked
	./tests/chart/setup.sh
	target/chart-venv/bin/python -m pytest tests/chart --ignore tests/chart/test_image.py

# Static by glibc here; the image's own build links musl. The only release build of the tests, kept under target/.
release:
	$(CARGO) rustc --release --locked --no-default-features --bin agent-shim -- -C target-feature=+crt-static

image: release ## the image: its program's size, its final stage, built and run without a daemon
	./tests/chart/setup.sh image
	target/chart-venv/bin/python -m pytest tests/chart/test_image.py

page: ## the status page in a real headless browser; screenshots in target/page-shots
	$(CARGO) build --locked --bins --example page-stage
	@code=0; ./tests/page/setup.sh || code=$$?; \
	case $$code in \
	0) target/page-venv/bin/python -m pytest tests/page -q ;; \
	3) ;; \
	*) exit $$code ;; \
	esac

# The echo server is the one that the tests have built: only the shim is measured.
guard: release ## instructions a call and a probe, memory and size against benches/budgets.json
	$(CARGO) build --locked --example echo
	./benches/setup.sh guard
	./tests/chart/setup.sh image
	target/chart-venv/bin/python -m pytest tests/bench -q -ra -p no:cacheprovider
	$(CARGO) test --locked --bench hot_paths
	python3 benches/guard.py $(ARGS)

# In a network namespace of its own where the machine lets it, so that packets can be dropped.
soak: ## 10 minutes of load and faults at random, of kinds of its own; an hour: ARGS="--minutes 60"; again: ARGS="--seed N"
	$(CARGO) build --locked --bin agent-shim --example soak
	@run=target/debug/examples/soak; \
	if unshare --net true 2>/dev/null; then \
	  unshare --net sh -c 'ip link set lo up && exec "$$0" "$$@"' $$run $(ARGS); \
	else $$run $(ARGS); fi

bench: release ## the comparison with nginx, HAProxy and Envoy, the acceptance run (wants a quiet machine)
	./benches/setup.sh
	./tests/mlserver/setup.sh
	$(CARGO) build --profile upstream --locked --no-default-features --example echo
	target/bench-venv/bin/python benches/peers/run.py $(ARGS)

fuzz: ## look for input that breaks a property: SECONDS (20) for each target, or for TARGET; nightly
	@./fuzz/run.sh "$(or $(TARGET),all)" "$(or $(SECONDS),20)"

tools:
	@./tools/test-tools.sh

clean: ## remove everything that was built
	$(CARGO) clean
