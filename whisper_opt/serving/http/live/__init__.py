"""WebSockets of live transcription: connections, limits, audio."""
