"""One decoding step of a scan and of a whole mixer."""
