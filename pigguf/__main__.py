"""`python -m pigguf` is the `pigguf` command."""

from pigguf.cli import main

if __name__ == "__main__":
    main()
