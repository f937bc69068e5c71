"""From recordings to transcripts: the ``Whisper`` class and the scheduler."""
