"""`python -m paper`."""

from craft.__main__ import start


def _paper() -> int:
    from paper.cli import main

    return main()


start(_paper, "python -m paper")
