"""Measures a model on held-out scans: questions, drawings and the image tokenizer, as figures and plots.

`evaluate` runs it all; `held_out` measures what other data allow, losses on samples that were never trained
on. `replies` puts prompts to the model. `judge` is a classifier that reads pictures without the model,
trained on `real_pictures`; `frechet` compares sets of pictures, `reconstruction` measures the image
tokenizer. `metrics` is arithmetic on what was answered and seen, `plots` draws it, `tracked_run` sends it to
MLflow.

Door:
    evaluate: EvaluateParams, evaluate
    held_out: evaluate_held_out
    metrics: AIMS
    tracked_run: track_evaluation
May import: registry, digits, data, tracking
"""
