"""Training data: readers of published layouts, a weighted mixture of datasets, batches of tensors.

Sample order depends on nothing but the seed and the sample number, so a run can resume at any step.

Files:
    readers.py               chooses the reader for a path; a new layout is one more reader, added here
    pieces.py                what readers share: a dataset is cut into pieces, which are read one by one
    json_spans.py            where each record lies in a JSON or JSONL file
    json_reader.py           LLaVA and ShareGPT conversations, JSON or JSONL
    parquet_reader.py        conversations with embedded images, as in LLaVA-OneVision
    tar_reader.py            WebDataset shards
    class_folder_reader.py   one folder of images for each class, as in ImageNet
    record_parsing.py        what readers share: a record becomes a sample or is logged as bad
    bad_records.py           counts and lists bad records, refuses a dataset with too many
    samples.py               one conversation and its images, validated
    prepared_data.py         the training splits that `vargpt data prepare` wrote, by kind
    mixture.py               sampling order over several datasets
    batch_loader.py          micro-batches of any step and rank
    code_corruption.py       random replacement of image codes in teacher forcing
    class_prompts.py         prompt templates for images of a class
    content_hashes.py        SHA-256 of datasets and files

Door:
    readers: open_dataset
    prepared_data: open_mixture, open_train_split
    samples: Sample
    batch_loader: BatchLoader
    content_hashes: files_sha256, samples_sha256
    bad_records: BadRecordLog
    class_prompts: article
    code_corruption: random_replacements
May import: no other room
"""
