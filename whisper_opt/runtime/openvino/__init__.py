"""The encoder through OpenVINO on the CPU."""
