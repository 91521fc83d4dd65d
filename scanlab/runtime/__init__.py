"""Choice of the implementation that serves a call, and its explanation."""
