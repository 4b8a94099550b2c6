"""The stages of VARGPT: which modules each of them trains, the training loop, and a run from data to model.

Files:
    stage_table.py   the list of what learns in stages 1, 2, 3 and `joint`, and from which stage each starts
    trainer.py       the training loop: micro-batches, gradient accumulation, checkpoints, stop
    run.py           one run: data, loop, tracking, publishing

Door:
    run: run_stage
    stage_table: STAGES, stage_named
May import: registry, tiny, optimization, digits, data, tracking, checkpoints
"""
