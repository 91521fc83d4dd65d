"""Selective scan in C++; recurrence.h is the loop."""
