"""`python -m vlmtune` is the `vlmtune` command."""

from vlmtune.cli import main

if __name__ == "__main__":
    main()
