"""What becomes of trained models: their folders, where they come from, their versions, and the champion.

`stage_folders`: the folders and the pointer of a stage. `shared_model`: the last model as DVC data.
`lineage`: the record beside the weights; `trace` verifies it back to the data and the first model, with
`data_pointer` (what DVC says) and `git_history` (what git says). `code_hash`: which code a stage depends on.
`trained_versions`: what stages publish, as versions of the trainers' own model in MLflow's registry.
`versions`: those of the model that is served; `fetch` gets one back. `evaluation_subject`: what figures are
of. `gates`: whether figures suffice, pure arithmetic. `promotion`: moves the alias champion, forth and back,
and refuses figures of another test set than the champion's; `promotion_lock` lets only one do so at a time.

Door:
    code_hash: room_hashes
    stage_folders: StageFolders, point_to_import, tracked_params
    data_pointer: data_md5, data_path, md5_on_disk
    git_history: git_facts, user_name
    lineage: CODE, TAG_PREFIX, WEIGHTS_TAG, config_sha256, hashes_of_sources
    lineage: imported_lineage, read_lineage, write_lineage
    trace: ChainLink, HashCheck, trace_lineage
    shared_model: SHARED, final_model, share, share_by_name
    evaluation_subject: DECIDING_SPLIT, SUBJECT, EvaluationSubject, subject_of
    gates: LOWER_IS_BETTER, decide, numbers, reaches
    versions: CHALLENGER, CHAMPION, figures_of, open_registry, register, replace_figures
    promotion: PAST_TAGS, Promotion, promote, roll_back
    trained_versions: track_trained
    fetch: model_folder
May import: tracking
"""
