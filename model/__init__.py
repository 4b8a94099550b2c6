"""VARGPT itself: the network, its processor, generation and checkpoints; needs torch and transformers,
nothing else.
"""
