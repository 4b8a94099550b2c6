"""Model versions: folders of a stage, lineage from weights to data, gates, champion and challenger.

`lineage` is the record beside the weights; `trace` walks it back, with `data_pointer` (DVC) and
`git_history`. `gates` and these know no MLflow; `versions` and `fetch` are the two that talk to it.

Door:
    stage_folders: StageFolders, tracked_params
    data_pointer: data_md5, data_path, md5_on_disk
    git_history: git_facts
    lineage: config_sha256, imported_lineage, read_lineage, write_lineage
    trace: ChainLink, HashCheck, trace_lineage
    shared_model: SHARED, final_model, share
    gates: LOWER_IS_BETTER, numbers
    versions: promote, register
    fetch: REGISTERED, fetch
May import: tracking
"""
