"""Starts a stage as one process or a group of processes on this node, and turns its end into an exit code.

Files:
    __main__.py        `python -m training.launching STAGE`, for operators and for `vargpt train`
    launcher.py        starts the training processes through torch's elastic agent, and waits for them
    saving_agent.py    torch's agent, with time for processes to save before a group grows
    rendezvous.py      number of nodes and processes and where they meet, from PET_ variables
    preflight.py       checks of this node before training: code, GPUs, memory, disk, network
    watchdog.py        ends the launcher when its group cannot go on, for the operator to retry
    heartbeats.py      signs of life of the processes of this node, in files
    peer_heartbeats.py signs of life between nodes, through the rendezvous store
    attempts.py        counts starts without a new checkpoint, up to a limit
    exit_codes.py      exit codes by name (1 is Python's own, after a crash), and which one a group ends with
    stage_process.py   one training process: options in, stage run, and which exit code an exception becomes

Door:
    exit_codes: DONE, PERMANENT_FAILURE, RETRYABLE_FAILURE, STOPPED
    preflight: EXPECTED_CODE, EXPECTED_GPUS
May import: stages, backbones, registry, tracking, checkpoints
"""
