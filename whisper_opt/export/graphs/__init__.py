"""The ONNX graphs of an engine, written node by node."""
