# `make demo` and `make test` do everything on a fresh machine that has Rust and Python 3.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
CARGO ?= cargo
TOOLS := target/tools
DENY_VERSION := 0.20.2

.PHONY: help demo test fmt lint doc deny unit faults mlserver page chart image bench guard soak tools fmt-fix clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

demo: ## see the shim at work: no cluster, no Python, no network
	$(CARGO) run --quiet --locked -- demo $(ARGS)

test: fmt lint doc deny unit mlserver page chart image ## every check there is

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

$(TOOLS)/bin/cargo-deny:
	$(CARGO) install cargo-deny --locked --version $(DENY_VERSION) --root $(TOOLS) --target-dir target/deny-build --quiet
	rm -rf target/deny-build

unit: tools ## unit and integration tests
	$(CARGO) test --locked

faults: ## the whole fault matrix with all pairs, about ten minutes; docs/reliability.md
	FAULTS_FULL=1 $(CARGO) test --locked --test it faults:: -- --nocapture --test-threads 1

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
image: ## the image: its program's size, its final stage, built and run without a daemon
	./tests/chart/setup.sh image
	$(CARGO) rustc --release --locked --no-default-features --bin agent-shim -- -C target-feature=+crt-static
	target/chart-venv/bin/python -m pytest tests/chart/test_image.py

page: ## the status page in a real headless browser; screenshots in target/page-shots
	$(CARGO) build --locked --bins --example page-stage
	@code=0; ./tests/page/setup.sh || code=$$?; \
	case $$code in \
	0) target/page-venv/bin/python -m pytest tests/page -q ;; \
	3) ;; \
	*) exit $$code ;; \
	esac

guard: ## instructions a call, memory and size against benches/budgets.json; not part of `test`
	$(CARGO) rustc --release --locked --no-default-features --bin agent-shim -- -C target-feature=+crt-static
	$(CARGO) build --release --locked --no-default-features --example echo
	python3 benches/guard.py

# In a network namespace of its own where the machine lets it, so that packets can be dropped.
soak: ## 10 minutes of load and faults at random; an hour: ARGS="--minutes 60"; again: ARGS="--seed N"
	$(CARGO) build --locked --bin agent-shim --example soak
	@run=target/debug/examples/soak; \
	if unshare --net true 2>/dev/null; then \
	  unshare --net sh -c 'ip link set lo up && exec "$$0" "$$@"' $$run $(ARGS); \
	else $$run $(ARGS); fi

bench: ## the comparison with nginx, HAProxy and Envoy, the acceptance run (wants a quiet machine)
	./benches/setup.sh
	./tests/mlserver/setup.sh
	$(CARGO) build --release --locked --no-default-features --bin agent-shim --example echo
	target/bench-venv/bin/python benches/peers/run.py $(ARGS)
	target/mlserver-venv/bin/python benches/acceptance/run.py

tools:
	@./tools/test-tools.sh

clean: ## remove everything that was built
	$(CARGO) clean
