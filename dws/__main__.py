"""`python -m dws`: the same program as the console script `dws`."""

from dws.cli import main

if __name__ == "__main__":
    main()
