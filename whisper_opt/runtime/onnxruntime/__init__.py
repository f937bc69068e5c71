"""Engines on the CPU with ONNX Runtime."""
