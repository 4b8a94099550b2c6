"""`python -m training.commands`: the command `vargpt` where the project is not installed."""

from training.commands.cli import main

main()
