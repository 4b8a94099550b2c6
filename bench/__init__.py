"""Benchmarks of the model: `gpu` of any preset on an accelerator, `latency` of `tiny` or a saved model on the
CPU.
"""
