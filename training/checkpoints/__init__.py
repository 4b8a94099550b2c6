"""Checkpoints that a stopped training resumes from: folders of steps, each committed whole or not at all.

Which folder a run looks in is decided by what it would train: stages by a hash of parameters, starting
weights and samples (`registry.stage_folders`), backbones by the fingerprint in the checkpoint
(`backbones.backbone_checkpoints`).

Files:
    step_folders.py   how a step is committed, verified, found again and deleted
    store.py          checkpoints of one process (backbones): named tensors and a JSON state
    state_trees.py    nested states, as an optimizer's, as named tensors
    slices.py         which elements of which parameters a process owns
    fragments.py      checkpoints of many processes: each writes the elements that it owns, any number reads

Door:
    step_folders
    store
    state_trees: flatten_state, unflatten_state
    slices: Flats, Slice, share_of, views
    fragments: Fragments, PART, fragment_name, write_part
May import: no other room
"""
