"""Residual sum and its RMSNorm or LayerNorm."""
