"""What training loops share: AdamW, learning-rate schedule, average of weights, non-finite gradients.

Files:
    optimizer.py              AdamW, and which parameters have no weight decay
    schedule.py               learning rate of a step: linear warm-up, then cosine decay
    weight_average.py         exponential moving average (EMA) of the weights, which is published
    non_finite_gradients.py   skips steps with an infinite or NaN gradient, up to a limit

Door:
    optimizer: make_adamw
    schedule: set_learning_rates
    weight_average: WeightAverage
    non_finite_gradients: NonFiniteGradientSkipper
May import: no other room
"""
