"""The ``whisper-opt`` command."""
