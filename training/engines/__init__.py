"""Engines: how processes share the work and the memory of a training step; the training loop is the same for
all.

Files:
    engine.py           what every engine does: forward, backward, update, state, and talk between processes
    plain.py            one process, or PyTorch's data parallel
    zero.py             DeepSpeed's ZeRO, stages 1 to 3, through accelerate
    zero_partitions.py  which elements of which parameters DeepSpeed keeps on a process
    make.py             the engine of a recipe

Door:
    engine: Engine, NamedParameters
    make: make_engine
May import: checkpoints
"""
