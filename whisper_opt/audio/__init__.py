"""From a recording to log-mel features: decoding, voice activity detection."""
