"""Independent computations that an export is compared with."""
