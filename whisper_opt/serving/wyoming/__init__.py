"""The protocol of Home Assistant's voice assistants, for ``whisper-opt serve``."""
