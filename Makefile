# The developer's day: make install, make test-fast, make lint; make test is everything, as in CI.
PYTHON ?= python
# Installed only where no PyTorch is present yet. Any release from 2.4 on works: `make install TORCH=torch` takes the
# newest, and a build for your CUDA installed beforehand is kept.
TORCH ?= torch==2.13.0

.PHONY: install test test-fast probe lint format wheel site pictures transcript

install:
	@$(PYTHON) -c "import torch" 2>/dev/null || $(PYTHON) -m pip install "$(TORCH)"
	$(PYTHON) -m pip install -e ".[test]"
	$(PYTHON) -m pip install --no-deps recbole==1.2.1

# A process a core, each file in one of them.
PYTEST = $(PYTHON) -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile

test:
	$(PYTEST) --durations=15

test-fast:
	$(PYTEST) -m "not slow and not probe"

probe:
	$(PYTHON) -m pytest -m probe

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

wheel:
	$(PYTHON) -m pip wheel --no-deps -w dist .

# The documentation as pages (needs the extra docs), in site/.
site:
	$(PYTHON) -m mkdocs build --strict

# The pictures of README and docs, by the commands that they show (needs Chromium, and matplotlib), and docs/first-run.md.
pictures:
	$(PYTHON) docs/make_pictures.py

transcript:
	$(PYTHON) docs/make_transcript.py
