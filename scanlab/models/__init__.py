"""Vision Mamba, its weights, and image preprocessing."""
