"""What computes the model: ONNX Runtime, and a fake for tests."""
