"""The command line: options in, one function called, facts out.

`data`: data. `pipeline`: training and this machine. `models`: a model's files. `registry`: registered models.
`runs`: runs that were recorded. `cluster`: jobs of a cluster. `deploy`: the service there. `cli` is `vargpt`
itself; `options` are shared, `demo` and `doctor` do the work of the commands of their names.

A command is an entry point in pyproject.toml; `cli` finds it by name and imports it only when it is called.
Exit codes: 0 done, 1 a check failed, 2 the user's mistake, 143 stopped after saving.

May import: deployment, submission, runs, launching, planning, stages, backbones, evaluation, registry,
digits, data, tracking, checkpoints
"""
