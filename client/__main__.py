"""python -m client: the same as `dsd`."""

from client.cli import main

if __name__ == "__main__":
    main()
