"""CUDA memory and copies, and ONNX Runtime on NVIDIA GPUs."""
