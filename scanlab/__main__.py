"""`python -m scanlab` is the command line."""

from scanlab.cli import main

if __name__ == "__main__":
    main()
