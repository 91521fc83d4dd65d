"""Vision Mamba, its weights, and the photographs it looks at."""
