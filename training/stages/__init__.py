"""The stages of VARGPT: which modules each of them trains, the training loop, and a run from data to model.

Files:
    stage_table.py    the list of what learns in stages 1, 2, 3 and `joint`, and from which stage each starts
    stage_loss.py     loss of a micro-batch, metrics of a step
    trainer.py        the training loop: micro-batches, gradient accumulation, checkpoints, stop
    checkpointing.py  every process saves its part of a step, while training goes on
    trained_model.py  the published model, from the model at the start and the last checkpoint
    run.py            one run: data, loop, tracking, publishing

Door:
    run: run_stage
May import: registry, engines, tiny, optimization, digits, data, tracking, checkpoints
"""
