# What a person types. The work of getting Caffe is in tools/build_caffe.py, how it is built in Makefile.config.example.
#
#   GPU=1             build Caffe with CUDA, now and from then on: see Makefile.config, which it writes
#   CAFFE_ROOT=/path  use the Caffe built there, and build none
#   CACHE=0           neither take a finished Caffe from the cache that clones share nor put it there

SYSTEM_PYTHON := /usr/bin/python3
PYTHON := .venv/bin/python
BUILD := $(SYSTEM_PYTHON) tools/build_caffe.py

export GPU CAFFE_ROOT CACHE
# With another Caffe on it, PYTHONPATH would come before .venv's.
unexport PYTHONPATH PYTHONHOME

.PHONY: help venv caffe caffe-test bundle train test lint onnx clean distclean
.NOTPARALLEL:

help:
	@echo "make caffe       get Caffe: installs what it needs, builds it into .venv (3 to 5 minutes, once)"
	@echo "make train       train the model, as config.py says"
	@echo "make test        run all tests, Caffe's own too"
	@echo "make caffe-test  run the tests of Caffe's Python interface"
	@echo "make bundle      pack all of it for a machine without network: .build/tripletloss-bundle.tar.xz"
	@echo "make lint        check the style of the code"
	@echo "make onnx        make the shipped model usable without Caffe: models/face997/face997.onnx and .venv-onnx"
	@echo "make venv        make .venv with everything but Caffe"
	@echo "make clean       remove .build, in which Caffe is compiled"
	@echo "make distclean   remove .venv too"

venv: | $(SYSTEM_PYTHON)
	@$(BUILD) venv

caffe: | $(SYSTEM_PYTHON)
	@$(BUILD) caffe

caffe-test: caffe
	@$(BUILD) test

bundle: caffe
	$(PYTHON) tools/bundle.py

train: caffe
	$(PYTHON) train.py

test: caffe-test
	$(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile
	$(PYTHON) -m ruff check .

lint: venv
	$(PYTHON) -m ruff check .

# For whoever has no Caffe, on any system with a python3: .venv-onnx has what pip brings, and no Caffe.
onnx: .venv-onnx/whole
	.venv-onnx/bin/python -m tripletloss.export models/face997/face997.caffemodel \
		--out models/face997/face997.onnx --pixels bgr --licence MIT

.venv-onnx/whole: pyproject.toml
	python3 -m venv --clear .venv-onnx
	.venv-onnx/bin/python -m pip --disable-pip-version-check install -e '.[onnx]'
	touch $@

clean:
	rm -rf .build

distclean: clean
	rm -rf .venv .venv-onnx compat/*.egg-info

# The smallest systems have no python3.
$(SYSTEM_PYTHON):
	@sh tools/bootstrap.sh
