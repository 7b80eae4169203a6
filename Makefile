# Everything is installed into .venv; `make demo` and `make test` are all that a newcomer needs.
# They run as root on Debian 12 and install the Debian packages that are missing.

VENV    := .venv
PY      := $(VENV)/bin/python
CACHE   ?= /var/cache/orchestra
SECONDS ?= 3600
ONLY    ?=
SEEDS   ?= 200

# Clients, peers and tracers that tests and benchmarks use; orchestra itself needs none of them.
PEERS   := runc crun docker.io docker-registry skopeo umoci strace conntrack zsh fish

.PHONY: demo demo-down test check bench soak sim install peers-installed

$(VENV)/.installed: pyproject.toml tools/packages.sh
	@sh tools/packages.sh
	@test -x $(PY) || python3 -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[test]'
	@$(PY) -m compileall -q orchestra
	@touch $@

install: $(VENV)/.installed

demo: install
	@$(PY) examples/demo.py up --cache $(CACHE)

demo-down: install
	@$(PY) examples/demo.py down

peers-installed: install
	@sh tools/packages.sh $(PEERS)

test: peers-installed
	@$(PY) -m pytest -q

check: install
	@$(VENV)/bin/ruff check orchestra tests bench examples
	@$(VENV)/bin/ruff format --check orchestra tests bench examples
	@$(VENV)/bin/mypy orchestra

bench: peers-installed
	@ONLY=$(ONLY) $(PY) -m bench

sim: install
	@$(PY) -m orchestra.testing.sim --seeds $(SEEDS)

soak: install
	@$(PY) tests/soak/soak.py --seconds $(SECONDS)
