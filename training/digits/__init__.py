"""The embedded data set: scenes of real handwritten digits, rendered and described.

`scans` reads the raw data, `scenes` draws it, `scene_renderer` and `instructions` make pictures and
sentences, `records` joins them, `prepare` writes published layouts.

Door:
    scenes: BACKGROUNDS, COLORS, SIDE, Scene, render, split_scans
    prepare: prepare
    scene_pool: ScenePool, batch_at, read_pool
    instructions: POPE_SETTINGS, sample_prompts
    scans: load_scans
May import: data, tracking
"""
