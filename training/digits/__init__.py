"""The embedded data set: real handwritten digits, one in each scene, in colours, with questions and captions.

Files:
    scans.py           reads the raw data, 1,797 scans of handwritten digits
    scenes.py          what a scene is, palette, splits, held-out pairs of digit and colour, rendering
    scene_sampler.py   random scenes of one split, with their images and questions
    instructions.py    all prompt and answer templates
    records.py         conversations about scenes, as records of published layouts
    prepare.py         writes the prepared data: `vargpt data prepare`
    scene_pool.py      all scenes of a split as tensors, for training the backbones

Door:
    scenes: BACKGROUNDS, COLORS, SIDE, Scene, render, split_scans
    prepare: prepare
    scene_pool: ScenePool, batch_indices, read_pool
    instructions: POPE_SETTINGS, sample_prompts
    scans: load_scans
May import: data, tracking
"""
