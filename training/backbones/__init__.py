"""Backbones, from which stage 1 starts: image tokenizer, visual decoder, vision tower, language model.

The `tiny` preset trains them from random weights, `7b` imports published ones.

Files:
    run.py                    one run: train all backbones, track, publish them as one model
    build.py                  trains all backbones and assembles the model
    workers.py                which backbones each of two worker processes trains, in which order
    worker_processes.py       runs workers in processes of their own, collects their losses and outcomes
    fit.py                    the training loop that all four share
    backbone_checkpoints.py   where one backbone resumes from, and its weights once it is trained
    image_tokenizer.py, visual_decoder.py, vision_tower.py, language_model.py   objective of each
    import_weights.py         published weights as one model: `vargpt import-weights`

Door:
    run: run_backbones
    import_weights: import_weights
May import: registry, tiny, optimization, digits, data, tracking, checkpoints
"""
