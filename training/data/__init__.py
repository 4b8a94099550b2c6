"""Training data: readers of published layouts, a weighted mixture of datasets, batches of tensors.

Sample order depends on nothing but the seed and the sample number, so a run can resume at any step.

`vargpt data prepare` checks every record and picture once and writes an index, which opens in a moment
whatever its size; `vargpt data encode` computes the codes of pictures that are drawn.

Files:
    readers.py               chooses the reader by the suffix of files; a new kind is one more, added here
    pieces.py                what readers share: a dataset is cut into pieces, which are read one by one
    json_parsing.py          JSON of users' files, refused with one sentence
    json_spans.py            where each record lies in a JSON or JSONL file
    json_reader.py           LLaVA and ShareGPT conversations, JSON or JSONL
    parquet_reader.py        conversations with embedded images, as in LLaVA-OneVision
    tar_reader.py            WebDataset shards: pictures with captions, or conversations
    class_folder_reader.py   one folder of images for each class, as in ImageNet
    record_parsing.py        keys of LLaVA's and ShareGPT's records: one becomes a sample or is logged as bad
    bad_records.py           counts and lists bad records, refuses a dataset with too many
    samples.py               one conversation and its images, validated
    datasets.py              samples by number, and what is known of each without reading it
    sample_facts.py          lengths of samples in tokens
    index_building.py        checks a dataset by several processes and writes its index
    dataset_index.py         reads a dataset by its index
    prepared_data.py         opens what `vargpt data prepare` has made ready
    permutations.py          random orders that depend on a key alone
    mixture.py               sampling order over several datasets
    packing.py               which samples share a row
    sample_encoding.py       a sample becomes tensors
    step_batches.py          the micro-batches of any step and rank
    prefetch.py              processes that make the next steps ahead
    batch_loader.py          the loader that training calls
    code_encoding.py         computes codes of pictures: `vargpt data encode`
    code_cache.py            where these codes lie
    code_corruption.py       random replacement of image codes in teacher forcing
    class_prompts.py         prompt templates for images of a class
    content_hashes.py        SHA-256 of datasets and files

Door:
    readers: open_dataset
    dataset_index: INDEX
    prepared_data: DataFolders, index_datasets, open_mixture, open_train_split
    code_cache: open_codes
    code_encoding: encode_pictures
    samples: Sample
    mixture: Mixture
    sample_facts: is_single_drawing
    batch_loader: BatchLoader
    content_hashes: files_sha256, samples_sha256
    bad_records: BadRecordLog
    class_prompts: article
    code_corruption: random_replacements
May import: tracking
"""
