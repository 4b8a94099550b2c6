"""Checkpoints that a stopped training resumes from: atomic step folders, and nested states as named tensors.

`store` finds the newest intact step of a folder after a restart. Which folder a run looks in is decided by
what it would train: stages by a hash of parameters, starting weights and samples (`registry.stage_folders`),
backbones by the fingerprint in the checkpoint (`backbones.backbone_checkpoints`).

Door:
    store
    state_trees: flatten_state, unflatten_state
May import: no other room
"""
