"""tripletloss: train embeddings with Caffe Python layers, softmax first, then FaceNet's triplet loss."""

from tripletloss.base.command import answer_ctrl_c

__version__ = "0.1.0"

answer_ctrl_c()
