"""Vocabulary, results and the formats they are written in."""
