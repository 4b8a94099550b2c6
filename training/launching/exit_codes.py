"""Exit codes of training processes and of their launcher, as `restartPolicy: ExitCode` understands them.

The Training Operator restarts a pod that ended with a code from 128 on, and fails the job on any other.
`stage_process.main` maps exceptions to these codes, `group_exit_code` the codes of several processes to one.
`vargpt submit --wait` and `vargpt logs` end with them, too: 0 the job succeeded, 2 it failed by a mistake
that only the user can mend, 138 it failed otherwise (deadline, retries used up, deleted), 143 nobody waits
for it any more.
"""

from collections.abc import Iterable

DONE = 0
# A mistake of the user, or too many attempts: another one cannot help.
PERMANENT_FAILURE = 2
# Reserved by the Training Operator for a failure that the program itself calls retryable.
RETRYABLE_FAILURE = 138
# Stopped by a signal after saving; 128 + SIGTERM.
STOPPED = 143


def group_exit_code(codes: Iterable[int]) -> int:
    """The exit code of a group of processes: permanent failure before crash, before stop, before done.

    An uncaught exception (1) counts as retryable: more often than not a peer went away. Negative codes are
    signals, as `subprocess` reports them.
    """
    codes = [128 - code if code < 0 else code for code in codes]
    if PERMANENT_FAILURE in codes:
        return PERMANENT_FAILURE
    crashes = [code for code in codes if code not in (DONE, STOPPED)]
    if crashes:
        return crashes[0] if crashes[0] > 128 else RETRYABLE_FAILURE
    return STOPPED if STOPPED in codes else DONE
