"""Caffe's files, read without Caffe."""
