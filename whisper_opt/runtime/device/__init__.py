"""Sessions on a device with its own memory; the same code for every executor."""
