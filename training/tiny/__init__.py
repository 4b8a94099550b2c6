"""What makes `tiny` train in minutes on a CPU; the 7b recipes use nothing of this room.

Files:
    muon.py             Muon for weight matrices: fewer steps than AdamW
    projector_init.py   generation projectors that begin as identity maps: a short stage 1

Elsewhere for the same purpose: model/cpu_kernels.py (faster kernels), model/training_attention.py (attention
as plain products), training/precision.py (bfloat16 where the processor multiplies it),
training/backbones/workers.py (two processes of one thread each).

Door:
    muon: LOW_RANK_LAYER, make_tiny_optimizer
    projector_init: initialize_projectors
May import: optimization
"""
