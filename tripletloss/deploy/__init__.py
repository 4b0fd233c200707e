"""A trained model without Caffe: ONNX."""
