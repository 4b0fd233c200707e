"""The mathematics, in NumPy: no Caffe and no files."""
