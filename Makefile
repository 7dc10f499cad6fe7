# Everything from a fresh clone: `make vmm` and `make test` need Python 3.11+ and make; a C compiler makes them fast.
# PYTHON=python3.12 chooses the interpreter, VENV=.venv-3.12 where its virtual environment goes, ARGS=... what is handed on.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
TARGET ?= vfio_user
TIME ?= 60
# What is installed: for an interpreter that has not everything, EXTRAS=uvloop TEST_GROUP=test-core, say.
EXTRAS ?= all
TEST_GROUP ?= test
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
# -P keeps the current directory off the path, so that what is tested is what is installed. Under -W error from the first import on.
PYTEST := $(PY) -P -W error -m pytest

C_FOLDERS := aioirqfd/counter aioirqfd/virtio/fast
C_SOURCES := $(wildcard $(C_FOLDERS:%=%/*.c) $(C_FOLDERS:%=%/*.h))
C_ALL := $(C_SOURCES) $(wildcard tests/native/*.c tests/native/*.h)
SHELL_SCRIPTS := $(wildcard .ci/run tests/*.sh tests/*/*.sh examples/*/*/*.sh)
NATIVE_TESTS := $(wildcard tests/native/*.c)

.PHONY: help vmm linux test test-all test-c test-python test-qemu conformance bench fuzz lint format docs sanitize tsan dist clean install

help:
	@echo 'make vmm          run the example VMM; ARGS=--help lists its options'
	@echo 'make linux        boot Debian'"'"'s Linux in it, up to a shell in this terminal; without a KVM that can, NESTED=1 does it in QEMU'
	@echo 'make test         the test suite with the C module, and beside it with its pure-Python twin; a few minutes'
	@echo '                  one part of it:  make test ARGS="tests/eventfd -x"  (ARGS goes to pytest)'
	@echo 'make test-all     the same with what takes long: guests in QEMU, stress; half an hour'
	@echo 'make test-c       the whole suite with the C module only; make test-python: with the twin only'
	@echo 'make test-qemu    the tests that need QEMU with a newer one than the installed, fetched into build/qemu:'
	@echo '                  SUITE=trixie is QEMU 10, SUITE=trixie-backports QEMU 11'
	@echo 'make conformance  hold every row of the kernel contract against this kernel; writes its page of the docs'
	@echo 'make bench        benchmarks against alternatives; for a part: ARGS="--rounds 3 --only burst"'
	@echo 'make fuzz         fuzz/fuzz_TARGET.py for TIME seconds: TARGET=vfio_user, protocol or virtqueue; needs atheris'
	@echo 'make lint         ruff, mypy, pyright, clang-format, shellcheck'
	@echo 'make format       ruff format, ruff check --fix, clang-format'
	@echo 'make docs         the documentation, into docs/_build/html; warnings are errors'
	@echo 'make sanitize     the suite on a build with AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make tsan         the free-standing C tests under ThreadSanitizer'
	@echo 'make dist         sdist, the platform wheel and the py3-none-any wheel, into dist/'
	@echo 'make install      what vmm, test and docs need, into $(VENV): from then on they work without a network'
	@echo 'make clean        remove what was built, and $(VENV)'
	@echo
	@echo '.ci/run           all that has to hold; .ci/run --list names its stages, .ci/run lint docs runs two of them'
	@echo
	@echo 'Each target installs what it lacks into $(VENV) the first time, which needs a network.'
	@echo 'PYTHON=$(PYTHON) VENV=$(VENV) choose the interpreter and the environment.'

# ------------------------------------------------------------------------------------------------------------ set-up

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit("aioirqfd needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo '== $(VENV): making it with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV) || { echo '$(PYTHON) -m venv failed; on Debian: apt-get install python3-venv' >&2; exit 1; }
	@$(PIP) install --upgrade 'pip>=25.1' 'setuptools>=77'
	@touch $@

# An old build of the C module must not outlive a failed one. With the environment's own setuptools, because a C file that was edited
# without a network has to be built, too.
$(VENV)/.stamp-install: $(VENV)/.stamp-venv pyproject.toml setup.py $(C_SOURCES)
	@echo '== $(VENV): installing aioirqfd'
	@suffix="$$($(PY) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')"; rm -f $(C_FOLDERS:%=%/_native"$$suffix")
	@rm -rf build/temp.* build/lib.*
	@PYTHONWARNINGS='ignore:Editable installation' $(PIP) install --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-install
	@echo '== $(VENV): installing the test dependencies'
	@$(PIP) install --group $(TEST_GROUP)
	@touch $@

$(VENV)/.stamp-lint: $(VENV)/.stamp-install
	@echo '== $(VENV): installing the linters'
	@$(PIP) install --group lint
	@touch $@

$(VENV)/.stamp-fuzz: $(VENV)/.stamp-install
	@echo '== $(VENV): installing atheris'
	@$(PIP) install --group fuzz
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-install
	@echo '== $(VENV): installing Sphinx'
	@$(PIP) install --group docs
	@touch $@

# So that what a newcomer runs next needs no network.
install: $(VENV)/.stamp-install $(VENV)/.stamp-test $(VENV)/.stamp-docs

# Which implementation an import gives: c or python. The suites choose for themselves, whatever the caller's environment says.
UNFORCED := env -u AIOIRQFD_PURE_PYTHON
LIVE = $$($(PY) -P -c 'import aioirqfd; print(aioirqfd.IMPLEMENTATION)')

# ----------------------------------------------------------------------------------------------------------- running

vmm: $(VENV)/.stamp-install
	@live="$(LIVE)"; if [ "$$live" != c ]; then \
		echo '== NOTE: the C module is not live; the VMM runs on the pure-Python implementation, which is slower.'; fi
	$(PY) -m examples.vmm $(ARGS)

# Up to a shell. A kernel that is not installed is fetched; NESTED=1 has the VMM run in QEMU, on a CPU with SVM, if slowly.
linux: $(VENV)/.stamp-$(if $(NESTED),test,install)
	@root=$$(examples/vmm/linux/fetch.sh) && $(PY) -m examples.vmm.linux.userland --root "$$root" build/linux
	$(PY) -m $(if $(NESTED),tests.qemu.nested_linux,examples.vmm linux) --kernel build/linux/vmlinuz --initrd build/linux/initramfs $(ARGS)

# What takes minutes is left to test-all, and to CI; and what is the same whichever implementation is live is run once, unless a part
# was asked for.
QUICK := not qemu and not slow and not stress
QUICK_TWIN := $(QUICK)$(if $(strip $(ARGS)),, and not alike)

test: $(VENV)/.stamp-test
	@echo '== make test: what takes long is left out (make test-all has it); a part: make test ARGS="tests/eventfd -x"'
	@$(MAKE) --no-print-directory VENV=$(VENV) test-all C_CHOICE="-m '$(QUICK)'" TWIN_CHOICE="-m '$(QUICK_TWIN)'"

# The twin's suite runs beside that of the C module, which is the one to be seen; its own output comes afterwards.
test-all: $(VENV)/.stamp-test
	@unset AIOIRQFD_PURE_PYTHON; live="$(LIVE)"; if [ "$$live" != c ]; then \
		echo '== NOTE: the C module could not be built; running the suite on the pure-Python implementation only.'; \
		exec $(MAKE) --no-print-directory test-python; \
	fi; \
	mkdir -p build; log=build/test-python.log; failed=0; \
	$(MAKE) --no-print-directory test-python >"$$log" 2>&1 & twin=$$!; \
	trap 'kill "$$twin" 2>/dev/null || true' EXIT; \
	$(MAKE) --no-print-directory test-c || failed=1; \
	echo "== the twin's suite runs on: $$log"; \
	wait "$$twin" || failed=1; \
	cat "$$log"; exit "$$failed"

test-c: $(VENV)/.stamp-test
	@echo '== the suite with the C module'
	$(UNFORCED) $(PYTEST) --expect-implementation=c $(C_CHOICE) $(ARGS)

# The twin differs in the counter and the drain: what QEMU does on the far side of a socket is the same for both.
test-python: $(VENV)/.stamp-test
	@echo '== the suite with the pure-Python twin'
	AIOIRQFD_PURE_PYTHON=1 $(PYTEST) --expect-implementation=python -m 'not qemu' $(TWIN_CHOICE) $(ARGS)

SUITE ?= trixie
test-qemu: $(VENV)/.stamp-test
	program=$$(tests/qemu/fetch.sh $(SUITE)); AIOIRQFD_QEMU=$$program $(MAKE) --no-print-directory test-c ARGS="-m qemu $(ARGS)"

# ARGS=--record writes down what this kernel gives, for machines without KVM.
conformance: $(VENV)/.stamp-test
	$(UNFORCED) $(PY) -W error -m tests.conformance.report --write $(ARGS)

# What it finds goes to build/fuzz. What of that reaches code that the kept inputs do not: the program with
# -merge=1 fuzz/corpus/TARGET build/fuzz/TARGET.
fuzz: $(VENV)/.stamp-fuzz
	@mkdir -p build/fuzz/$(TARGET)
	$(UNFORCED) $(PY) fuzz/fuzz_$(TARGET).py -max_total_time=$(TIME) -artifact_prefix=build/fuzz/ $(ARGS) build/fuzz/$(TARGET) fuzz/corpus/$(TARGET)

lint: $(VENV)/.stamp-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict aioirqfd $(if $(wildcard examples/*.py examples/*/*.py),examples)
	$(BIN)/pyright --warnings --pythonpath $(PY)
	@if [ -n '$(C_ALL)' ]; then \
		if [ -x $(BIN)/clang-format ]; then \
			echo '$(BIN)/clang-format --dry-run -Werror $(C_ALL)'; $(BIN)/clang-format --dry-run -Werror $(C_ALL); \
		else echo '== clang-format is not installed: the C layout was not checked'; fi; fi
	@if [ -x $(BIN)/shellcheck ]; then echo '$(BIN)/shellcheck $(SHELL_SCRIPTS)'; $(BIN)/shellcheck $(SHELL_SCRIPTS); \
	else echo '== shellcheck is not installed: the shell scripts were not checked'; fi

format: $(VENV)/.stamp-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@if [ -n '$(C_ALL)' ] && [ -x $(BIN)/clang-format ]; then $(BIN)/clang-format -i $(C_ALL); fi

docs: $(VENV)/.stamp-docs
	$(PY) -m sphinx -W --keep-going --fresh-env -b html docs docs/_build/html

# Shows nothing where nobody looks: run it on a machine that does nothing else. ARGS='--rounds 3 --only signal' for a part.
$(VENV)/.stamp-bench: $(VENV)/.stamp-install
	@echo '== $(VENV): installing what the benchmarks measure against'
	@$(PIP) install --group bench
	@touch $@

bench: $(VENV)/.stamp-bench
	$(UNFORCED) $(PY) -m tests.bench $(ARGS)

# ---------------------------------------------------------------------------------------------------------- sanitizers

SAN_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1
CC ?= cc

# A whole copy of the package goes to build/asan, so that the installed one is left alone. The interpreter itself leaks at
# exit by design, hence detect_leaks=0; pytest -s, or it swallows the sanitizers' reports.
sanitize: $(VENV)/.stamp-test
	rm -rf build/asan build/asan-temp
	CFLAGS='$(SAN_FLAGS)' LDFLAGS='-fsanitize=address,undefined' AIOIRQFD_WERROR=1 \
		$(PY) setup.py --quiet build --build-lib build/asan --build-temp build/asan-temp
	@ls $(C_FOLDERS:%=build/asan/%/_native*.so) >/dev/null || { echo 'the C module could not be built' >&2; exit 1; }
	$(UNFORCED) PYTHONPATH="$$PWD/build/asan" PYTHONSAFEPATH=1 PYTHONMALLOC=malloc \
		LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
		$(PYTEST) -s --expect-implementation=c -p no:cacheprovider -o pythonpath='build/asan .' $(ARGS)

# setarch -R: ThreadSanitizer's fixed shadow does not fit every randomised layout.
tsan:
	@if [ -z '$(NATIVE_TESTS)' ]; then echo '== no free-standing C tests in tests/native'; fi
	@mkdir -p build/tsan; for source in $(NATIVE_TESTS); do \
		program=build/tsan/$$(basename $$source .c); \
		echo "== $$source under ThreadSanitizer"; \
		$(CC) -std=c11 -Wall -Wextra -g -O1 -fsanitize=thread -pthread -Iaioirqfd/counter -o $$program $$source; \
		TSAN_OPTIONS=halt_on_error=1 setarch -R $$program; \
	done

# ---------------------------------------------------------------------------------------------------------------- dist

$(VENV)/.stamp-dist: $(VENV)/.stamp-install
	@echo '== $(VENV): installing what builds and checks packages'
	@$(PIP) install --group dist
	@touch $@

# The platform wheel is built from the sdist, which proves that the sdist is whole. auditwheel gives it the tag of the oldest glibc
# that it runs with. All of the time of the last commit, so that who builds it again gets the same bytes.
dist: $(VENV)/.stamp-dist
	rm -rf dist build/lib.* build/bdist.* build/temp.* build/plain
	@export SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct 2>/dev/null || echo 315532800)" PATH="$$PWD/$(BIN):$$PATH"; \
		$(PY) -m build --outdir build/plain . && \
		auditwheel show build/plain/*-linux_*.whl && auditwheel repair --wheel-dir dist build/plain/*-linux_*.whl && \
		mv build/plain/*.tar.gz dist/ && rm -rf build/lib build/lib.* build/bdist.* && \
		AIOIRQFD_NO_EXTENSION=1 $(PY) -m build --wheel --outdir dist .
	@$(BIN)/twine check --strict dist/*
	@ls -l dist

clean:
	rm -rf build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)
	rm -f $(C_FOLDERS:%=%/_native*.so)
	find aioirqfd tests examples docs -name __pycache__ -type d -prune -exec rm -rf {} +
