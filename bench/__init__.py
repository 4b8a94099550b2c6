"""Benchmarks of the model: `gpu` of any preset on an accelerator, `latency` of `tiny` or a saved model on the
CPU, `rehearsal` of the way from published weights to an answer over HTTP.
"""
