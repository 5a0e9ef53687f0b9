"""`python -m nncontrol_prune.cli`."""

from nncontrol_prune.cli import main

main()
