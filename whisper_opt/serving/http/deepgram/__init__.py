"""Live transcription as Deepgram's clients ask for it, over WebSockets."""
