"""The command line: options in, one function called, facts out.

A command is an entry point in pyproject.toml; `cli` finds it by name and imports it only when it is called.
Exit codes: 0 done, 1 a check failed, 2 the user's mistake, 143 stopped after saving.

May import: launching, stages, backbones, evaluation, registry, digits, data, tracking, checkpoints
"""
