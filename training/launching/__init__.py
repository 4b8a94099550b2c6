"""One stage as processes of this node: launcher, exit codes, and the process that trains.

`launcher` starts and watches the group, `stage_process` is one member of it; `python -m training.launching`.

Door: none, it is started as a process
May import: stages, backbones, registry
"""
