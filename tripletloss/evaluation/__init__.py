"""Embeddings by Caffe, and what they are good for: figures, comparison, groups, suspects, plots."""
