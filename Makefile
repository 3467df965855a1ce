PYTHON ?= python3
RUN = .venv/bin/

.PHONY: demo test check clean

demo: .venv/demo ## compare the default schemes on the packaged model and text
	$(RUN)kvdelta compare --windows 8

test: .venv/dev ## all tests, the real-model ones included
	$(RUN)python -m pytest

check: .venv/dev ## what continuous integration runs: lint, types, tests
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)pyright --pythonpath $(RUN)python
	$(MAKE) test

.venv/%: pyproject.toml constraints.txt
	@echo "installing torch, transformers and the rest into .venv (once; some minutes, quiet)"
	test -x $(RUN)python || $(PYTHON) -m venv .venv
	$(RUN)python -m pip install --disable-pip-version-check -q -c constraints.txt torch
	$(RUN)python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf .venv
