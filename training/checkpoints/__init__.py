"""Checkpoints to resume from: atomic step folders with hashes, and nested states as named tensors.

Door:
    store
    state_trees: flatten_state, unflatten_state
May import: no other room
"""
