# How Caffe is obtained is in tools/build_caffe.py; how it is built is in Makefile.config.example.
#
#   GPU=1             build Caffe with CUDA, now and in future: this writes a Makefile.config that says so
#   CAFFE_ROOT=/path  use the Caffe that is built there, and build none
#   CACHE=0           build Caffe even if the cache that clones share has it, and leave that cache as it is

SYSTEM_PYTHON := /usr/bin/python3
PYTHON := .venv/bin/python
BUILD := $(SYSTEM_PYTHON) tools/build_caffe.py

export GPU CAFFE_ROOT CACHE
# PYTHONPATH takes precedence over .venv, so another Caffe on it would be used instead.
unexport PYTHONPATH PYTHONHOME

.PHONY: help venv caffe caffe-test bundle train test test-fast lint onnx dlib-model clean distclean
.NOTPARALLEL:

help:
	@echo "make train       train the model as config.py says"
	@echo "make test        run all tests, including Caffe's own, and make lint"
	@echo "make test-fast   run the tests that need no Caffe, in under a minute"
	@echo "make caffe       build Caffe into .venv and install what it needs (3 to 5 minutes, once)"
	@echo "make onnx        compare faces in photos without Caffe: models/dlib_resnet/dlib_resnet.onnx and .venv-onnx"
	@echo "make dlib-model  fetch dlib's face network as Caffe weights: models/dlib_resnet/dlib_resnet.caffemodel"
	@echo "make caffe-test  run the tests of Caffe's Python interface"
	@echo "make lint        check the style and the types of the code"
	@echo "make bundle      pack everything for a machine without a network: .build/tripletloss-bundle.tar.xz"
	@echo "make venv        make .venv with everything except Caffe"
	@echo "make clean       remove .build, where Caffe is compiled"
	@echo "make distclean   remove .build, .venv and .venv-onnx"

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

test: caffe-test lint
	$(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile

test-fast: venv
	$(PYTHON) -m pytest -p tests.no_caffe -n auto --maxprocesses 4 --dist loadfile \
		tests/core tests/data tests/deploy tests/test_docs.py tests/test_rooms.py

lint: venv
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

dlib-model: venv
	$(PYTHON) -m tripletloss.dlib_model

# Needs no Caffe: works on any system with python3. Everything in .venv-onnx comes from pip.
onnx: .venv-onnx/whole
	.venv-onnx/bin/python -m tripletloss.dlib_model
	.venv-onnx/bin/python -m tripletloss.export models/dlib_resnet/dlib_resnet.caffemodel --force \
		--config models/dlib_resnet/config.py --out models/dlib_resnet/dlib_resnet.onnx --pixels bgr --mirrored \
		--threshold models/dlib_resnet/threshold.json --licence CC0-1.0

.venv-onnx/whole: pyproject.toml
	python3 -m venv --clear .venv-onnx
	.venv-onnx/bin/python -m pip --disable-pip-version-check install -e '.[onnx]'
	touch $@

clean:
	rm -rf .build

distclean: clean
	rm -rf .venv .venv-onnx compat/*.egg-info

# The smallest systems come without python3.
$(SYSTEM_PYTHON):
	@sh tools/bootstrap.sh
