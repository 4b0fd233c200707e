"""Files in and out, without Caffe: weights, prototxts, embeddings."""
