"""``faster_whisper.version``: the version whose interface the drop-in has."""

__version__ = "1.2.1"
