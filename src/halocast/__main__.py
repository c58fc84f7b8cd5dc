"""``python -m halocast``: the command line, also the entry for torchrun and srun."""

from halocast.cli import main

if __name__ == "__main__":
    main()
