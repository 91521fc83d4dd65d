"""Search within a budget, choose, and keep the choice."""
