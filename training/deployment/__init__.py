"""Rolls the service in a cluster to a registered version: at once, or after a part of the traffic has tried
it.

Files:
    lineage_labels.py    a registered version as labels of its pods, and the list that admission looks into
    rollout.py           a Deployment's pods replaced, with the reason where they do not come up
    service_metrics.py   requests, errors and latency of a Deployment's pods, from their own metrics
    canary.py            a second Deployment with a share of the traffic, compared with the first

Door:
    lineage_labels: registered_versions, write_registered
    rollout: Deployments
    canary: Canary, CanaryRules
May import: submission, registry
"""
