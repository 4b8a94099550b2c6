"""AdamW with its list of what does not decay, learning-rate schedule, average of weights.

Door:
    gradient_guard: GradientGuard
    optimizer: make_adamw
    schedule: set_learning_rates
    weight_average: WeightAverage
May import: no other room
"""
