# make test     everything that must pass before a change lands
# make check    the part of it without tests: lint, format, types, and the site if Sphinx is there
# make soak     faults on purpose: kills, damage, full disks, hostile files; under 90 minutes
# make demo     train on handwritten digits, judge and draw samples into out/demo/
# make demo-test  use the page of `sfumato demo` in headless Chromium, and take its screenshots
# make models   train the models and classifiers that are bundled again, and put them into the package
# make pictures  draw the pictures of the README, docs/editing.md and docs/restoration.md again
# make docs     the documentation site, in out/docs
# make gallery  the site with the executed gallery, in out/docs too
# make zoo      every method for a minute on the digits: docs/zoo.md and its pictures
# make bench    what the library costs beside its network, and beside others
# make dist     the wheel and the source archive of the last tag, checked, into dist/
# make venv     only the environment that the others make for themselves
# make clean    remove what these targets wrote, except environments

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
INSTALL := $(BIN)/python -m pip install -qq --no-input --no-compile \
	--disable-pip-version-check -c constraints.txt
WORKERS ?= 2
DEMO_IMAGES ?= 40000
SHOTS ?= docs

# Warnings are errors. All pages are read anew: the reference depends on the source, index.md on README.
SITE := OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -E -a -W --keep-going -b html docs out/docs

# Without compiled modules every process of a test or a demo spends most of its time on importing.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help venv test check soak docs gallery demo demo-test models pictures zoo bench dist clean

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

# It waits for the second where that is asked for too.
$(VENV)/.docs: $(VENV)/.core | $(if $(filter test check bench,$(MAKECMDGOALS)),$(VENV)/.test)
	@echo "Installing the tools of the site into $(VENV)."
	@$(INSTALL) -e '.[docs]'
	@touch $@

# One recipe, so that `make -j` keeps the order and the tests' last line stays last.
check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	@if $(BIN)/python -c 'import sphinx, myst_parser, furo' 2>/dev/null; then $(SITE); \
		else echo "The site was not built: its tools come with make docs."; fi

docs: $(VENV)/.docs
	$(SITE)
	@echo "Open out/docs/index.html."

gallery: $(VENV)/.docs
	$(SITE) -t gallery
	@echo "Open out/docs/index.html."

# One thread for each worker: two workers with two threads each are slower on two cores.
# -v takes back pyproject's -q, for a header with the versions and a full closing line.
test: check
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	$(BIN)/python -m pytest -v -n $(WORKERS) --dist worksteal --durations=40

# It goes on where it was cut: `make soak SOAK="kills --share 0.1"` for a part of it. Root may mount
# the small file system that it fills. A whole soak without a miss fills docs/reliability.md.
soak: $(VENV)/.test
	PYTHONPATH=src:tests $(BIN)/python -m faults $(or $(SOAK),--publish)

demo: $(VENV)/.core
	@mkdir -p out/demo
	$(BIN)/sfumato train soft --data digits --images $(DEMO_IMAGES) --seed 0 --out out/demo/run \
		--patch 1 --width 32
	$(BIN)/sfumato show soft --data digits --out out/demo/forward.png
	$(BIN)/sfumato show out/demo/run --steps 50 --out out/demo/reverse.png
	$(BIN)/sfumato sample out/demo/run --seeds 0-63 --steps 50 --out out/demo/samples.png
	@rm -f out/demo/evaluation.json
	$(BIN)/sfumato evaluate out/demo/run --n 1000 --steps 20 --out out/demo/evaluation.json
	$(BIN)/sfumato sample fashion-soft --seeds 0-15 --out out/demo/fashion-soft.png
	$(BIN)/sfumato sample fashion-ddpm --seeds 0-15 --out out/demo/fashion-ddpm.png
	@echo "Look at the pictures in out/demo/: forward, reverse, samples, fashion-soft, fashion-ddpm."

# Needs Debian's packages chromium and chromium-driver, or others of one version on the PATH.
$(VENV)/.browser: $(VENV)/.test
	@echo "Installing selenium into $(VENV)."
	@$(INSTALL) selenium
	@touch $@

demo-test: $(VENV)/.browser
	OMP_NUM_THREADS=1 SHOTS=$(SHOTS) $(BIN)/python -m pytest -v tests/browser.py

# About an hour and a half on two cores, or what is left of it.
models: $(VENV)/.core
	$(BIN)/python recipes/classifiers.py
	for name in soft ddpm; do $(BIN)/sfumato train --config recipes/fashion-$$name.yaml \
		&& $(BIN)/python recipes/ship.py runs/fashion-$$name fashion-$$name --sampler ddim --steps 20 \
		|| exit 1; done

pictures: $(VENV)/.core
	$(BIN)/sfumato sample fashion-soft --seeds 0-63 --steps 50 --out docs/fashion-soft.png
	$(BIN)/sfumato sample fashion-ddpm --seeds 0-63 --steps 50 --out docs/fashion-ddpm.png
	$(BIN)/sfumato show soft --data fashion-mnist --rows 4 --out docs/soft-forward.png
	$(BIN)/sfumato show fashion-soft --seeds 0-3 --steps 50 --out docs/soft-reverse.png
	$(BIN)/python recipes/restored.py
	$(BIN)/python recipes/editing.py
	$(BIN)/python recipes/calls.py

zoo: $(VENV)/.core
	$(BIN)/python recipes/zoo.py

bench: $(VENV)/.test
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/transforms.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/levels.py

dist:
	@test -x .venv-dist/bin/twine || { $(PYTHON) -m venv .venv-dist && \
		.venv-dist/bin/python -m pip install -qq --disable-pip-version-check build twine; }
	@rm -rf dist
	.venv-dist/bin/python -m build
	.venv-dist/bin/python -m twine check --strict dist/*

clean:
	rm -rf out/demo out/docs docs/api docs/built_gallery build dist .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +
