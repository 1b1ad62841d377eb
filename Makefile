# Two commands do all set-up: `make demo` and `make test`. Both work in a virtual environment, .venv.

PYTHON ?= python3
BIN := .venv/bin
RUNS := runs
DEMO := $(RUNS)/demo

.PHONY: demo test test-fast lint types format docs clean distclean

# goes on where it was broken off, and trains what is not there
train = if test -f $(1)/config.json; then $(BIN)/spikegpt train --resume $(1); \
	else $(BIN)/spikegpt train --preset tiny --out $(1) $(2); fi

demo: .venv/base
	@echo "--- three trainings of a minute or two each on two free cores, then half a minute of measuring; interrupt it at any moment: make demo goes on from there ---"
	@echo "--- a spike-driven language model of about 1M parameters, trained on the text of Python's own documentation ---"
	@$(call train,$(DEMO)-spiking)
	@echo "--- its dense twin: the same sizes, text, seed and steps ---"
	@$(call train,$(DEMO)-twin,--spiking none)
	@echo "--- the published block, whose spikes no matrix product reads ---"
	@$(call train,$(DEMO)-published,--spiking output)
	@echo "--- what the spiking model writes ---"
	@$(BIN)/spikegpt generate $(DEMO)-spiking "The " --max-tokens 300
	@echo "--- all three on text that none has seen: quality, firing, operations, estimated energy, speed ---"
	@$(BIN)/spikegpt compare $(DEMO)-spiking $(DEMO)-published $(DEMO)-twin
	@echo "--- open $(DEMO)-spiking/report/report.html; the runs: $(DEMO)-spiking, $(DEMO)-twin, $(DEMO)-published (config.json, metrics.jsonl, samples.txt, checkpoints/) ---"
	@echo "    $(BIN)/spikegpt --help    shows what else there is; source .venv/bin/activate to leave out the path"

test: lint types
	$(BIN)/python -m pytest -n 2 --dist worksteal

# what takes seconds: no long training, no compiler, no second process
test-fast: .venv/test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror cuda/*.cu cuda/*.cuh

types: .venv/test
	$(BIN)/mypy

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i cuda/*.cu cuda/*.cuh

# the pages, the reference and a gallery as a site, in build/site; its search needs a server: python -m http.server -d build/site
docs: .venv/test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --config-file docs/site/mkdocs.yml

.venv/base: pyproject.toml constraints.txt
	@echo "--- installing into .venv: torch and a few more, 200 MB or more to fetch; half a minute to some minutes, in silence ---"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

# spikingjelly and neurobench ask for torchvision and torchaudio, which the tests do not need and which would bring another torch
.venv/test: .venv/base
	@echo "--- installing what the tests need: a minute or more, in silence ---"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,hf,eval,serve,docs,nir]' snntorch nirtorch loguru scipy tqdm
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps spikingjelly neurobench
	touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
