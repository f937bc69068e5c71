"""Audio decoding, voice activity detection and log-mel features."""
