"""The stages of VARGPT: which modules each of them trains, the training loop, and a run from data to model.

Files:
    stage_table.py    the list of what learns in stages 1, 2, 3 and `joint`, and from which stage each starts
    stage_loss.py     loss of a micro-batch
    step_metrics.py   what a step reports
    blocks.py         transformer blocks: recomputed or compiled
    lora.py           low-rank adapters, through peft
    validation.py     losses of what is held out
    throughput.py     speed, FLOP/s, MFU
    compute_time.py   how long each process computes before it waits for others
    trainer.py        the training loop: micro-batches, gradient accumulation, checkpoints, stop
    checkpointing.py  every process saves its part of a step, while training goes on
    work_record.py    what restarts cost: steps and seconds that were lost
    trained_model.py  the published model, from the model at the start and the last checkpoint
    run.py            one run: data, loop, tracking, publishing

Door:
    run: PARAMS_ARTIFACT, PROCESSES_TAG, run_stage
    stage_loss: StageLoss, mean_losses, on_device
    stage_table: STAGES, freeze_for, stage_named
    trainer: WEIGHT
May import: planning, registry, engines, tiny, optimization, digits, data, tracking, checkpoints
"""
