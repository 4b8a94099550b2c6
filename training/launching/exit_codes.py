"""How a training process ends, for shells and operators."""

DONE = 0
PERMANENT = 2
# Reserved by the Training Operator for a failure that the program itself calls retryable.
CRASHED = 138
STOPPED = 143
