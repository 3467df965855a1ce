PYTHON ?= python3
RUN = .venv/bin/

# transformers versions that kvdelta works with: the oldest, and where it changed what a cache is asked; the newest is that of
# constraints.txt, with which `make check` runs
VERSIONS = 5.17.0 5.23.0
FUZZ_SECONDS ?= 60
FILES = --ignore=tests/harness/records --ignore=tests/harness/test_kills.py # the same under each of them
NO_MODEL = -m "not real_model" $(FILES) tests/harness tests/analysis/cli tests/analysis/measuring

.PHONY: demo test check docs docs-check fuzz check-versions $(VERSIONS:%=check-version-%) clean

demo: .venv/demo ## compare the default schemes on the packaged model and text
	$(RUN)kvdelta compare --windows 8

test: .venv/dev ## all tests, the real-model ones included
	$(RUN)python -m pytest

check: .venv/dev ## what continuous integration runs: lint, types, docs, tests
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)pyright --pythonpath $(RUN)python
	$(MAKE) docs
	$(MAKE) test

docs: .venv/dev ## the pages of docs/ and the API reference, in build/docs
	$(RUN)python -m sphinx -q -W --keep-going -b html docs build/docs

docs-check: docs ## what the pages and README say: commands, what they print, figures, links
	$(RUN)python -m pytest tests/docs tests/test_examples.py

fuzz: .venv/fuzz ## a fuzzer's inputs through all that reads specs, maps and records, FUZZ_SECONDS each
	$(RUN)python tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS)

check-versions: $(VERSIONS:%=check-version-%) ## the tests that need no packaged model, with each of these transformers

$(VERSIONS:%=check-version-%): check-version-%: .venv/versions/%/ready
	.venv/versions/$*/bin/python -m pytest $(NO_MODEL)

.venv/%: pyproject.toml constraints.txt
	@echo "installing torch, transformers and the rest into .venv (once; some minutes, quiet)"
	test -x $(RUN)python || $(PYTHON) -m venv .venv
	$(RUN)python -m pip install --disable-pip-version-check -q -c constraints.txt torch
	$(RUN)python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[$*]'
	touch $@

# what is in .venv, under another transformers and what that version needs of others; nothing of it touches .venv itself
.venv/versions/%/ready: .venv/dev
	rm -rf $(@D)
	$(RUN)python -m venv --without-pip $(@D)
	$(RUN)python -c 'import pathlib, sysconfig; \
	  ours, (theirs,) = sysconfig.get_path("purelib"), pathlib.Path("$(@D)").glob("lib/python*/site-packages"); \
	  (theirs / "venv.pth").write_text(f"import site; site.addsitedir({ours!r})\n")'
	$(RUN)python -m pip --python $(@D)/bin/python install --disable-pip-version-check -q transformers==$*
	touch $@

clean:
	rm -rf .venv
