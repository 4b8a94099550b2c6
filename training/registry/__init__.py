"""Model versions: folders of a stage, lineage from weights to data, gates, champion and challenger.

`lineage` and `gates` know no MLflow; `versions` and `fetch` are the two that talk to it.

Door:
    stage_folders: StageFolders, config_of
    lineage: config_sha256, data_md5, data_path, git_facts, md5_on_disk, read_lineage, trace_lineage
    shared_model: SHARED, final_model, share
    gates: LOWER_IS_BETTER, numbers
    versions: promote, register
    fetch: REGISTERED, fetch
May import: tracking
"""
