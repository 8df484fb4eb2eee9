"""`python -m edgecdn` is `edgecdn`."""

from edgecdn.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
