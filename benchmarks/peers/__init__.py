"""Other systems with the same weights; see docs/benchmarks.md."""
