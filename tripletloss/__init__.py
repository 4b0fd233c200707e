"""tripletloss: train embeddings with Caffe Python layers, softmax first, then FaceNet's triplet loss."""

__version__ = "0.1.0"
