"""Live transcription without threads or clocks: when to decode what, and when to commit words."""
