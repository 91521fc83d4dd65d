"""What all C++ ops share: vectors, threads, allocation, instruction sets."""
