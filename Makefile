# make test     everything that must pass before a change lands
# make check    the part of it that runs no code: lint, format, types
# make demo     train on handwritten digits and draw samples into out/demo/
# make pictures  draw the README's pictures again, training what is missing
# make venv     only the environment that the others make for themselves
# make clean    remove what these targets wrote, except .venv

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
INSTALL := $(BIN)/python -m pip install -qq --no-input --no-compile \
	--disable-pip-version-check -c constraints.txt
WORKERS ?= 2
DEMO_IMAGES ?= 40000

.DELETE_ON_ERROR:
.PHONY: help venv test check demo pictures clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST))

venv: $(VENV)/.test

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# A stamp is as old as the last installation from these two files. The second waits for the first,
# so that two targets of one `make -j` never install at the same time.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing sfumato into $(VENV); the first time takes a few minutes."
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "Installing the test tools into $(VENV)."
	@$(INSTALL) -e '.[test]'
	@touch $@

# One recipe, so that `make -j` keeps the order and the tests' last line stays last.
check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# One thread for each worker: two workers with two threads each are slower on two cores.
# -v takes back pyproject's -q, for a header with the versions and a full closing line.
test: check
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	$(BIN)/python -m pytest -v -n $(WORKERS) --dist worksteal

demo: $(VENV)/.core
	@mkdir -p out/demo
	$(BIN)/sfumato train soft --data digits --images $(DEMO_IMAGES) --seed 0 --out out/demo/run \
		--patch 1 --width 32
	$(BIN)/sfumato show soft --data digits --out out/demo/forward.png
	$(BIN)/sfumato show out/demo/run --steps 50 --out out/demo/reverse.png
	$(BIN)/sfumato sample out/demo/run --seeds 0-63 --steps 50 --out out/demo/samples.png
	@echo "Look at out/demo/forward.png, out/demo/reverse.png and out/demo/samples.png."

# The pictures of the README: about an hour on two cores, or what is left of it.
pictures: $(VENV)/.core
	$(BIN)/sfumato train soft --data fashion-mnist --images 180000 --seed 0 --out runs/soft
	$(BIN)/sfumato train ddpm --data fashion-mnist --images 180000 --seed 0 --out runs/ddpm
	$(BIN)/sfumato sample runs/soft --seeds 0-63 --steps 50 --kernel momentum --out docs/fashion-soft.png
	$(BIN)/sfumato sample runs/ddpm --seeds 0-63 --steps 50 --kernel ddim --out docs/fashion-ddpm.png
	$(BIN)/sfumato show soft --data fashion-mnist --rows 4 --out docs/soft-forward.png
	$(BIN)/sfumato show runs/soft --seeds 0-3 --steps 50 --out docs/soft-reverse.png

clean:
	rm -rf out/demo build dist .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +
