"""A model repository for NVIDIA Triton: its Python backend on the engine of this package."""
