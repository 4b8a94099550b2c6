"""The command line: options in, one function called, facts out.

`data`: data. `plan`: what a stage will take. `pipeline`: training and this machine. `models`: a model's
files. `registry`: registered models. `runs`: runs that were recorded. `cluster`: jobs of a cluster. `deploy`:
the service there. `cli` is `vargpt` itself; `options` are shared, `demo` and `doctor` do the work of the
commands of their names, and `metrics_table` is figures as text.

A command is an entry point in pyproject.toml; `cli` finds it by name and imports it only when it is called.
Exit codes: 0 done, 1 a check failed, 2 the user's mistake, 138 a failure that trying again may mend; of
training, also 143 stopped after saving. `submit --wait` and `logs` have those of their job
(launching/exit_codes.py).

May import: deployment, submission, runs, launching, planning, stages, backbones, evaluation, registry,
digits, data, tracking, checkpoints
"""
