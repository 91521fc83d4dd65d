"""Implementations of the ops of state-space models: a folder for each op, a file for each implementation."""
