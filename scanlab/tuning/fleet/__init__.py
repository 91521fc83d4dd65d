"""One search shared by several processes or machines."""
