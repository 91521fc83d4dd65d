"""What all Triton ops share: launches, versions, registration."""
