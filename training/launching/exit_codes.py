"""What launcher and training process agree on: how processes end, and who started them."""

DONE = 0
PERMANENT = 2
# Reserved by the Training Operator for a failure that the program itself calls retryable.
CRASHED = 138
STOPPED = 143

# Environment variable by which a training process knows its launcher, with which it dies.
LAUNCHER_PID = "VARGPT_LAUNCHER_PID"
