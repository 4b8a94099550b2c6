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
    gpus.py                memory, speed and bandwidth of GPUs, with their sources
    workload.py            how long samples are, and how many of them a micro-batch has
    plan.py                all of this for one stage: time, bytes and cost
    recipes.py             a plan with some of a recipe changed, as options ask for it
    report.py              a plan as facts and as a table
    dry_run.py             checks the configuration of a stage and plans it
    capacity.py            the page docs/capacity.md

Door:
    capacity: capacity_page
    dry_run: check_batch, check_options, check_packages, dry_run
    flops: count_flops
    gpus: peak_flops
    gradients: trace
    operations: Unit
    plan: Assumptions, Plan
    recipes: Changes, plan_changed
    report: facts, table
May import: tiny, data, registry
"""
