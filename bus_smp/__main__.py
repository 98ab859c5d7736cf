"""``python -m bus_smp`` is ``bus-smp``."""

from bus_smp.cli import main

if __name__ == "__main__":
    main()
