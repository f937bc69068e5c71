"""Benchmarks: what ``whisper-opt bench`` does, and what the scripts in ``benchmarks`` share."""

from __future__ import annotations
