"""Is it right, and how fast: verification, timing, statistics, records."""
