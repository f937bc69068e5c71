"""TensorRT plans: finding, checking and running them."""
