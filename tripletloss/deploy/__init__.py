"""A trained model without Caffe: ONNX export and use, and faces in photos."""
