"""Prototxts and weights, made ready for Caffe."""
