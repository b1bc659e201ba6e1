"""`python -m siftune` is the `siftune` command."""

from siftune.cli import main

main()
