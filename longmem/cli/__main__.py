"""`python -m longmem.cli`: the same as `longmem`."""

from longmem.cli import main

main()
