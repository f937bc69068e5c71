"""TensorRT plans: how they are built."""
