# make demo   sets up, builds, prefills a prompt in one engine and decodes it in another
#             MODEL=<Hugging Face directory>  PROMPT="..."  MAX=<tokens>
# make demo-processes   the same with two processes and KV through shared memory
# make demo-dynamo   a prefill and a decode worker under NVIDIA Dynamo (docs/dynamo.md); needs Go
# make serve  an OpenAI-compatible server: a front with a page to try it on, a prefill worker, two decode workers
#             SERVER=go|cpp  MODEL=<directory>  PORT=<port>
# make test   everything that CI runs; `make go` (the Go module) and `make servers` (the servers under real clients) are parts of it
# make check  formatting, lints, fast tests
# make kernels compiles the CUDA kernels for all architectures and checks them (kernels/checked remembers for which
#             sources: make test then compiles for one); without nvcc it installs one in target/cuda
# make gpu-check   checks and measures the CUDA backend on this machine's GPU (docs/performance-gpu.md);
#             gpu-check-pack makes a folder, build/gpu-check, for a machine without Rust
# make header rewrites include/cleave/cleave.h from src/ffi
# make fuzz   every fuzz target for FUZZ_SECONDS (60); needs nightly and cargo-fuzz
# make scale  simulates deployments for docs/scale.md, and draws its figures; tools/plan-validate.sh measures how well
#             the simulator predicts
# make bench  measures (docs/performance.md); make install PREFIX=<prefix>; make clean

MAKEFLAGS += --no-print-directory
MODEL ?= models/tiny
PROMPT ?=
MAX ?= 64
PORT ?= 8000
PREFIX ?= /usr/local
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# A shell that was started before rustup was installed does not have its directory in PATH.
export PATH := $(PATH):$(HOME)/.cargo/bin
# cargo and CMake share a target directory, so nothing is built twice.
export CARGO_TARGET_DIR ?= $(CURDIR)/target

BUILD := build
FEATURES := failpoints,fuzzing
# Language of the server in examples/.
SERVER ?= $(if $(shell command -v go),go,cpp)
# The build result, laid out as installed.
STAGE := $(CURDIR)/$(BUILD)/stage
GO_ENV := PKG_CONFIG_PATH=$(STAGE)/lib/pkgconfig CGO_LDFLAGS="-O2 -g -Wl,-rpath,$(STAGE)/lib"
CARGO_TEST := cargo test --locked --features $(FEATURES)

.PHONY: all demo demo-processes demo-dynamo serve go-server go servers stage test check fuzz kernels gpu-check gpu-check-pack header scale bench install clean setup configure build fmt lint rust ctest

all: build

setup:
	@tools/setup.sh

configure:
	@cmake -S . -B $(BUILD) -DCMAKE_BUILD_TYPE=Release -DCLEAVE_CARGO_TARGET_DIR="$(CARGO_TARGET_DIR)" $(CMAKE_FLAGS) >$(BUILD).log 2>&1 \
		|| { cat $(BUILD).log; exit 1; }
	@mv $(BUILD).log $(BUILD)/configure.log

build: configure
	cmake --build $(BUILD) --parallel $(JOBS)

demo: setup
	@$(MAKE) --no-print-directory configure
	@cmake --build $(BUILD) --parallel $(JOBS) --target example_disagg
	@echo
	@$(BUILD)/examples/disagg "$(MODEL)" --max $(MAX) $(if $(value PROMPT),--prompt '$(subst ','\'',$(value PROMPT))')

demo-processes: setup
	@$(MAKE) --no-print-directory configure
	@cmake --build $(BUILD) --parallel $(JOBS) --target example_prefill_worker example_decode_worker example_disagg
	@echo
	@examples/handoff.sh --bin $(BUILD)/examples --model "$(MODEL)" $(if $(value PROMPT),'$(subst ','\'',$(value PROMPT))')

demo-dynamo:
	@tools/setup.sh
	@$(MAKE) go-server
	@tools/dynamo.sh --install
	@examples/dynamo/demo.sh "$(MODEL)"

serve:
	@tools/setup.sh $(if $(filter cpp,$(SERVER)),--all)
	@$(MAKE) $(SERVER)-server
	@examples/serve.sh $(BUILD)/examples/$(SERVER)-server/$(SERVER)-server "$(MODEL)" $(PORT)

stage: configure
	cmake --build $(BUILD) --parallel $(JOBS) --target cleave_cargo
	@cmake --install $(BUILD) --prefix $(STAGE) >/dev/null

cpp-server: configure
	cmake --build $(BUILD) --parallel $(JOBS) --target example_cpp_server

go-server: stage
	@mkdir -p $(BUILD)/examples/go-server
	cd examples/go-server && $(GO_ENV) go build -o $(CURDIR)/$(BUILD)/examples/go-server/ . ./supervisor

go: stage
	bindings/go/test.sh $(STAGE) $(CURDIR)/models/tiny
	cd examples/go-server && $(GO_ENV) go vet ./... && $(GO_ENV) go test -race ./...

servers:
	@tools/servers.sh

fmt:
	cargo fmt --all --check

lint:
	cargo clippy --locked --all-targets --features $(FEATURES) -- -D warnings
	cargo clippy --locked --all-targets -p simulated-kernels -p simulated-cuda -p simulated-cublaslt -p cleave-plan -- -D warnings

rust:
	$(CARGO_TEST)

ctest: build
	cd $(BUILD) && ctest --output-on-failure --parallel $(JOBS)

test:
	@tools/test.sh

check: fmt lint
	cargo test --locked -p source-checks
	$(CARGO_TEST) --lib --test failpoints

fuzz:
	@tools/fuzz.sh

kernels:
	@tools/kernels.sh --check

gpu-check-pack:
	@tools/gpu-check-pack.sh $(BUILD)/gpu-check

gpu-check:
	@[ -e /dev/nvidiactl ] || [ -e /dev/dxg ] || { echo "gpu-check: there is no CUDA device on this machine; gpu-check-pack packs for one that has" >&2; exit 1; }
	@$(MAKE) gpu-check-pack
	@$(BUILD)/gpu-check/gpu-check.sh $(GPU_CHECK_ARGS)

header:
	CLEAVE_BLESS=1 cargo test --quiet --locked -p source-checks the_committed_header_is_current

scale:
	cargo run --quiet --locked --release -p cleave-plan -- study --out docs/images
	tools/draw_figures.py

bench:
	cargo bench --locked --bench cleave $(if $(BENCH_ARGS),-- $(BENCH_ARGS))

install: build
	cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	rm -rf $(BUILD) $(CARGO_TARGET_DIR)
