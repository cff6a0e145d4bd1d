"""``python -m diffusam``."""

from . import main

if __name__ == "__main__":
    main()
