# What a user needs: `make run` and `make test`. Everything else is for people who work on it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto

RUN_PACKAGES := qemu-system-x86 e2fsprogs python3 python3-pip ca-certificates gcc libc6-dev
TEST_PACKAGES := busybox-static cpio dnsmasq-base docker-registry erofs-utils git jq libclang-dev pkg-config procps qemu-system-arm skopeo systemd umoci util-linux
# The architecture of guests that this machine can run in software beside its own.
OTHER_ARCH := $(if $(filter aarch64,$(shell uname -m)),x86_64,aarch64)
BENCH_PACKAGES := entr runit s6 supervisor

.PHONY: help run build release guests single dist test bench chaos fuzz fmt clippy docs deny tools-run tools-test clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: tools-run ## install what is missing, build, run the quickstart until Ctrl-C
	$(CARGO) build --release --workspace --bins
	./target/release/iii-super run -f examples/quickstart/iii.workers.yaml

build: tools-run ## build everything, unoptimised
	$(CARGO) build --workspace --bins

release: tools-run ## build everything, optimised
	$(CARGO) build --release --workspace --bins

guests: ## build vm-init for workers of the other platform (linux/arm64, linux/amd64)
	./scripts/guest-init $(OTHER_ARCH)

single: release ## build one self-contained file and its checksum in target/dist
	./scripts/single

dist: single ## build a release archive, the self-contained file and their checksums
	./scripts/dist

test: tools-test ## install what is missing, run every test
	./scripts/test

bench: tools-run tools-test ## measure against peers, in one run
	./scripts/install $(BENCH_PACKAGES)
	$(CARGO) build --release --workspace --bins
	./target/release/iii-bench

FAULTS ?= 240
chaos: tools-test ## hurt workers on real VMs, FAULTS times; III_CHAOS_SEED repeats a run
	$(CARGO) build --workspace --bins
	scratch=$$(mktemp -d); trap 'rmdir "$$scratch"' EXIT; \
	TMPDIR=$$scratch $${CARGO_TARGET_DIR:-target}/debug/iii-chaos $(FAULTS)

fuzz: ## fuzz every parser, SECONDS_EACH (60) of each
	./scripts/fuzz

fmt: ## format the sources
	$(CARGO) fmt --all

clippy: ## lint as CI does
	$(CARGO) clippy --workspace --all-targets -- -D warnings

docs: ## build the API documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --workspace --no-deps

deny: ## check licences, advisories and sources of all dependencies
	./scripts/deny

tools-run:
	@./scripts/install $(RUN_PACKAGES)

# Node has several origins, which exclude each other: any will do.
tools-test: tools-run
	@./scripts/install $(TEST_PACKAGES)
	@command -v node >/dev/null && command -v npm >/dev/null || ./scripts/install nodejs npm

clean: ## remove what was built
	$(CARGO) clean
