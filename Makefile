# The two commands of the README are `make run` and `make test`; each installs what it needs.
#   make run    builds, and shows this machine live
#   make demo   breaks a real container runtime (its own, private one) and shows the verdicts
#   make test   every test
#   make ground FAULT=NAME   one fault in a virtual machine, and what the agent saw of it (without FAULT: their list)
#   make ground-all          every fault; keeps the evidence and writes docs/proving-ground.md anew
#   make ground-fire         how late the agent's ticks are while the node is dying, beside node_exporter and a shell loop
#   make ground-pod, make ground-bare    what a container changes; that the agent loads nothing
#   make bench  the figures of docs/PERFORMANCE.md, each asserted
#   make agent  the agent as it is shipped: one static file
#   make api-check   a public tester (schemathesis) against the agent's own description of its API: half a minute
#   make fuzz   every parser of the agent, FUZZ_SECONDS (60) a target; needs the nightly toolchain. Not a part of CI yet
#   make lint   format, clippy, dependencies: all blocking
#   make docs   writes the generated pages of docs/

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
TARGET := target/$(shell rustc -vV | sed -n 's/^host: //p')
TOOLS := $(CURDIR)/target/tools
export PATH := $(TOOLS)/bin:$(PATH)

# What the build needs (SQLite is compiled from C), and what the tests break and compare with.
BUILD_PACKAGES := gcc libc6-dev
TEST_PACKAGES := $(BUILD_PACKAGES) conntrack containerd containernetworking-plugins etcd-server iproute2 iptables nftables prometheus runc systemd-journal-remote
# The proving ground: a virtual machine made of Debian's packages.
GROUND_PACKAGES := $(BUILD_PACKAGES) qemu-system-x86 qemu-utils mmdebstrap e2fsprogs busybox-static
BENCH_PACKAGES := $(TEST_PACKAGES) $(GROUND_PACKAGES) prometheus-node-exporter

# Installs those of the named Debian packages that are missing. RUNLEVEL=1 keeps their services from starting, except
# where systemd runs: there Debian starts containerd and prometheus, which the tests neither use nor touch.
define install
missing=""; for package in $(1); do \
  dpkg-query -W -f='$${Status}' "$$package" 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
done; \
if [ -n "$$missing" ]; then echo "installing Debian packages:$$missing"; \
  $(SUDO) apt-get update -qq; \
  $(SUDO) env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
fi
endef

.PHONY: help
help:
	@sed -n 's/^#   //p' Makefile

.PHONY: run
run:
	@$(call install,$(BUILD_PACKAGES))
	cargo build --release --locked -p nodewhy
	@exec $(TARGET)/release/nodewhy up

.PHONY: demo
demo:
	@$(call install,$(TEST_PACKAGES))
	cargo build --release --locked -p nodewhy -p nodewhy-tests --bins
	@exec $(TARGET)/release/demo

.PHONY: test
test: $(TOOLS)/nextest ground-ready
	@$(call install,$(TEST_PACKAGES))
	cargo nextest run --locked --workspace

# The virtual machine runs programs as they are built for release: emulated, it is slow enough. Its disk and its snapshot
# are made before the tests, so that no test's time has them in it.
.PHONY: ground-ready
ground-ready:
	@$(call install,$(TEST_PACKAGES) $(GROUND_PACKAGES))
	cargo build --release --locked -p nodewhy-agent -p nodewhy-guest --bins
	cargo build --locked --workspace --bins
	$(TARGET)/debug/ground make

.PHONY: ground
ground: ground-ready
	@$(TARGET)/debug/ground $(if $(FAULT),run $(FAULT),list)

# What a container changes; that the agent loads nothing; how late its ticks are while the node is dying.
.PHONY: ground-pod ground-bare ground-fire
ground-pod ground-bare ground-fire: ground-%: ground-ready
	@$(TARGET)/debug/ground $*

.PHONY: ground-all
ground-all: ground-ready
	@$(TARGET)/debug/ground all --keep --jobs 2
	NODEWHY_BLESS=1 cargo test -q --locked -p nodewhy-ground --test table

.PHONY: bench
bench: ground-ready
	@$(call install,$(BENCH_PACKAGES))
	cargo build --profile dist --locked --workspace --bin nodewhy-agent --bin nodewhy --bin bench
	@$(TARGET)/dist/bench
	@$(TARGET)/debug/ground fire

.PHONY: agent
agent:
	@$(call install,$(BUILD_PACKAGES))
	cargo build --profile dist --locked -p nodewhy-agent
	@ls -l $(TARGET)/dist/nodewhy-agent

# The agent on a free port, ended by its id. What is fuzzed is the running program with this machine's own sources.
.PHONY: api-check
api-check: $(TOOLS)/schemathesis
	@$(call install,$(BUILD_PACKAGES))
	cargo build --locked -p nodewhy-agent
	@umask 077; folder=$$(mktemp -d); trap 'kill $$agent; rm -rf $$folder' EXIT; \
	token=$$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'); printf %s $$token >$$folder/token; \
	port=$$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'); \
	$(TARGET)/debug/nodewhy-agent --socket $$folder/agent.sock --listen 127.0.0.1:$$port --token-file $$folder/token \
	  --lock-memory false --log warn & agent=$$!; \
	$(TOOLS)/schemathesis/bin/schemathesis --config-file agent/schemathesis.toml run \
	  http://127.0.0.1:$$port/api/v1/openapi.json --wait-for-schema 10 --url http://127.0.0.1:$$port \
	  --header "Authorization: Bearer $$token" --checks all --request-timeout 3 --max-time 30 --no-color

# Inputs that were found go to fuzz/corpus (kept out of the repository); one that breaks a parser to fuzz/artifacts.
FUZZ_SECONDS ?= 60
FUZZ := RUSTFLAGS="-C codegen-units=4" cargo +nightly fuzz

.PHONY: fuzz
fuzz:
	@if cargo +nightly --version >/dev/null 2>&1; then \
	  $(MAKE) --no-print-directory fuzz-run; \
	else \
	  echo "fuzz: not run, for the nightly toolchain is not installed (rustup toolchain install nightly)"; \
	fi

# Without a sanitizer: what is looked for are panics, endless loops and too much memory.
.PHONY: fuzz-run
fuzz-run: $(TOOLS)/bin/cargo-fuzz
	@$(call install,g++)
	$(FUZZ) build -s none
	@$(FUZZ) list | xargs -P 2 -I{} sh -c 'mkdir -p fuzz/corpus/{} && echo "fuzz: {}" && \
	  $(FUZZ) run -s none {} fuzz/corpus/{} fuzz/seeds/{} -- -max_total_time=$(FUZZ_SECONDS) \
	    -rss_limit_mb=512 -timeout=5 -max_len=16384 -verbosity=0 -print_final_stats=1'

.PHONY: lint
lint: $(TOOLS)/deny
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets
	cargo deny --locked check bans licenses sources

.PHONY: docs
docs:
	cargo run -q --locked -p nodewhy -- causes --output markdown > docs/causes.md.new
	mv docs/causes.md.new docs/causes.md
	NODEWHY_BLESS=1 cargo test -q --locked -p nodewhy-agent --test pages

# Tools of the Rust registry that the machine may lack; a stamp, so that it is looked at once.
$(TOOLS)/nextest:
	@command -v cargo-nextest >/dev/null || cargo install --locked --root $(TOOLS) cargo-nextest@0.9.143
	@mkdir -p $(TOOLS) && touch $@

$(TOOLS)/deny:
	@command -v cargo-deny >/dev/null || cargo install --locked --root $(TOOLS) cargo-deny@0.20.2
	@mkdir -p $(TOOLS) && touch $@

$(TOOLS)/bin/cargo-fuzz:
	cargo install --locked --root $(TOOLS) cargo-fuzz@0.13.2

# From the Python registry, in a folder of its own.
$(TOOLS)/schemathesis:
	@$(call install,python3-venv)
	python3 -m venv $@ && $@/bin/pip install --quiet schemathesis==4.32.5 || { rm -rf $@; exit 1; }
