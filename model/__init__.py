"""VARGPT itself: network, processor, generation and checkpoints; torch and transformers are all it needs.

One file for each box of the figure; `vargpt` joins them, `modeling` is what transformers knows, `generation/`
replies.
"""
