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
    import_plan.py            which published tensor becomes which weight
    import_tensors.py         makes the weights of a plan, and compares them with what was written
    import_report.py          what has become of every published tensor
    import_run.py             the stage at a size whose weights are published
    new_folder.py             a folder that appears whole or not at all

Door:
    run: run_backbones
    import_weights: ImportChoices, import_weights, verify_import
    import_plan: ImportSources
    import_run: ImportProgress
May import: registry, tiny, optimization, digits, data, tracking, checkpoints
"""
