"""``python -m agenthive.cli``."""

from agenthive.cli import main

main()
