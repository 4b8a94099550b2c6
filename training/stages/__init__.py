"""The three stages of VARGPT and `joint`: which modules learn, the loop, one run from data to model.

`stage_table` is the table of the paper's figure, `trainer` the loop, `run` joins loop, tracking and
publishing.

Door:
    run: run_stage
May import: registry, tiny, optimization, digits, data, tracking, checkpoints
"""
