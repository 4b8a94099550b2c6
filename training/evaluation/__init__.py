"""How good a model is: questions, drawings and the image tokenizer on held-out scans, as figures and plots.

`judge` reads pictures without the model; `metrics` is arithmetic on what it saw.

Door:
    evaluate: EvaluateParams, evaluate
    metrics: TARGETS
    tracked_run: track_evaluation
May import: registry, digits, data, tracking
"""
