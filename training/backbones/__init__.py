"""What stage 1 starts from: parts trained from nothing for `tiny`, imported from published weights for `7b`.

`parts` says which part learns after which, in which process; one module for each part; `fit` is their loop.

Door:
    run: run_backbones
    import_weights: import_weights
May import: registry, tiny, optimization, digits, data, tracking, checkpoints
"""
