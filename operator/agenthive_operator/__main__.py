"""``python -m agenthive_operator`` is the operator."""

from agenthive_operator.main import main

if __name__ == "__main__":
    main()
