"""Prototxts and weights, prepared for Caffe."""
