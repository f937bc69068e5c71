"""Realtime transcription of the OpenAI API, over WebSockets."""
