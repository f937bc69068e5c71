"""The encoder in OpenVINO on the CPU."""
