"""What only exists to make `tiny` train in minutes on a CPU; no 7b recipe comes here.

Muon for matrices, and generation projectors that begin as identities. Its kernels are model/cpu_kernels.py.

Door:
    muon: make_tiny_optimizer
    projector_start: initialize_projectors
May import: optimization
"""
