"""Everything that learns, measures and decides, in rooms that each name what others may use.

Arrows go down only: commands; launching; stages, backbones, evaluation; registry, tiny; optimization, digits;
data; tracking, checkpoints. `params`, `precision`, `errors`, `run_context` and `parent_death` are for all.
"""
