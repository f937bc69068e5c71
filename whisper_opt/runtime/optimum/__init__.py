"""Whisper models that Optimum exported, as they are on the hub (onnx-community and others)."""
