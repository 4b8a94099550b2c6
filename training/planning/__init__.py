"""What a training will take, from its configuration alone: FLOPs, memory, time, bytes and cost.

Nothing is built and no GPU is touched. Everything starts from the list of a step's operations, of which each
knows its weights, its FLOPs and what it keeps for the backward pass.

Files:
    operations.py          one operation: weights, FLOPs, what is kept
    transformer_parts.py   operations of vision tower, projectors, language model and visual decoder
    tokenizer_parts.py     operations of the image tokenizer
    gradients.py           which of them learn in a stage, and where gradients flow
    flops.py               FLOPs by part and pass
    activations.py         what is kept from the forward pass for the backward pass
    memory.py              memory by part and kind under every engine, bytes of a checkpoint

Door: none
May import: stages, tiny
"""
