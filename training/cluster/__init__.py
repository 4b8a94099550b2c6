"""Renders the Kubernetes manifests of training: jobs of the stages, and of what comes before and after them.

Files:
    __main__.py        `python -m training.cluster`: writes the rendered files below k8s/ (`make manifests`);
                       with `--check`, says which of them are out of date
    jobs.py            a stage as a PyTorchJob or a TrainJob, and the TrainingRuntime of the latter
    pods.py            the pod that all jobs run: container, volumes, environment, security
    placement.py       nodes, nearness and tolerations of workers
    pipeline_jobs.py   plain Jobs: data and backbones before stage 1; evaluation to packaging after stage 3
    images.py          image names, from k8s/images/kustomization.yaml
    manifest_files.py  which file holds which rendered objects, as YAML text

Door:
    jobs: JobOptions, render_job, render_runtime
    pipeline_jobs: reads_codes, render_backbones, render_release
    images: image_names
    pods: GPU, PARAMS_FILE, variables
May import: no other room
"""
