"""Published data layouts -> samples -> batches, in an order fixed by seed and sample number.

A new layout is a reader beside `readers_json` and `readers_shards`, chosen in `readers`.

Door:
    readers: open_dataset
    samples: Sample
    batches: Batches, open_mixture
    content: files_sha256, samples_sha256
    bad_records: BadRecordLog
    class_prompts: article
    code_corruption: random_replacements
May import: no other room
"""
