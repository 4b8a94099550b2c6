"""Runs stages of the pipeline as jobs of a cluster, and tells what becomes of them.

Files:
    api.py           the API server, asked with patience: it may be away for minutes
    jobs.py          jobs of three kinds, made, found and deleted, and how they are
    identity.py      what decides a stage, and the name of its job, which follows from it
    manifests.py     a stage's job as training/cluster renders it, and the parameters that it is given
    submit.py        submits a stage, or finds its job; follows it and fetches its result files
    follow.py        follows a job to its end: phases, reasons, log, exit code
    log_lines.py     new lines of pods' logs
    pod_reasons.py   why a pod waits, or why it ended
    result_files.py  fetches small files from the volume of a job
    pack_files.py    the program in the cluster that prints them

Door:
    api: ApiServer, NOT_FOUND, REQUEST_SECONDS, is_conflict
    pod_reasons: exit_codes, waiting_reason
    jobs: Jobs
    follow: JobFollower, describe
    manifests: is_job, make_submission
    submit: Submitter
May import: cluster, launching, registry
"""
