"""Common parts of the Triton ops: launches, versions, registration."""
