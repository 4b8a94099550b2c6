"""Rolls the service in a cluster to a registered version: at once, or after a part of the traffic has tried
it.

Files:
    registered_versions.py   versions as labels of their pods, and the list that admission looks into
    rollout.py               a Deployment's pods replaced, with the reason where they do not come up
    service_metrics.py       requests, errors and latency of a Deployment's pods, from their own metrics
    canary.py                a second Deployment with a share of the traffic, compared with the first
    traffic_split.py         the share, as weights of the front or of a Gateway's route
    canary_rules.py          when it is as good: errors, latency, and the gates of promotion
    refusals.py              versions that were tried and not taken

Door:
    registered_versions: RegisteredVersion, RegisteredVersions, registered_versions, write_registered
    rollout: Deployments
    refusals: Refusals
    canary: STABLE, Canary
    canary_rules: CanaryRules
May import: submission, registry
"""
