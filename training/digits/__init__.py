"""The embedded data set: scenes of real handwritten digits, rendered and described.

`scans` reads the raw data, `scenes` draws it, `instructions` words it, `prepare` writes published layouts.

Door:
    scenes: BACKGROUNDS, COLORS, SIDE, Scene, render, split_scans
    prepare: POPE_SETTINGS, prepare
    scene_pool: ScenePool, batch_at, read_pool
    instructions: sample_prompts
    scans: load_scans
May import: data
"""
