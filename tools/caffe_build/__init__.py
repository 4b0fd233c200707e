"""The steps that tools/build_caffe.py takes to get Caffe into .venv, a module a subject.

programs  other programs run, and files put in place
system    Makefile.config, and the packages of the distribution
venv      the interpreter, and .venv
cuda      what a GPU build needs
cache     what was built before, and whether it can be used again
onednn    oneDNN, and our layers that use it
source    Caffe's source, fetched and changed
package   Caffe compiled, and the package `caffe` put together
"""
