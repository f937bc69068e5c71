"""Sessions on a device with memory of its own; the same code for every executor."""
