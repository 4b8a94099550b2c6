"""Everything that learns, measures and decides, in rooms that each name what others may use.

A room is a sub-package. Its docstring lists its files, under `Door` the names that other rooms may import,
and under `May import` the rooms that it uses. Imports go down only, floor by floor: commands; deployment;
submission; launching, cluster, runs; stages, backbones, evaluation; planning; registry, tiny, engines;
digits, optimization; data; tracking, checkpoints. `params`, `params_file`, `yaml_core`, `precision`,
`errors`, `run_context` and `parent_death` are for all. tests/test_architecture.py checks this.
"""
