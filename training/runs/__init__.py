"""Runs that MLflow knows, done again: a whole run, or the batch of one of its steps.

Files:
    recorded_run.py  what MLflow keeps of a run: stage, parameters, commit, data, weights
    rerun.py         the whole run, in a folder of its own, with the weights compared
    replay.py        the batch of one step, sample by sample

Door:
    rerun: rerun
    replay: replay
May import: stages, registry, data, checkpoints, tracking
"""
