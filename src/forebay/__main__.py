"""`python -m forebay` is the `forebay` command."""

from forebay.cli.root import main

if __name__ == "__main__":
    main()
