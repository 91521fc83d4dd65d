"""Contract: problems, ops, backends, and their verification."""
