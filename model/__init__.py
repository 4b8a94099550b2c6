"""The VARGPT network, its processor, generation and checkpoints; needs torch and transformers, no platform.

    vargpt.py            all boxes of the README's figure, joined; the teacher-forced pass through them
    backbones.py         VisionTower and LanguageModel, as transformers implements them, with our text_head.py
    projectors.py        UnderstandingProjector, GenerationInputProjector, GenerationOutputProjector
    visual_decoder.py    VisualDecoder, of blocks in layers.py; predicts the codes of the next scale, from
                         keys and values of the scales before in a DecoderCache
    image_tokenizer.py   ImageTokenizer: autoencoder.py and quantizer.py, pixels <-> codes
    modeling.py          what transformers and training call: `forward`, `loss_sums` (losses.py), `generate`
    generation/          replies: text and images for many requests at once
    processing.py        conversations (messages.py, text_tokenizer.py) and images (transforms.py) <-> tensors
    batches.py           encoded samples as one batch, padded or packed
    config.py            sizes of every part, presets; scales.py has the layout of the tokens of an image
    checkpoint.py        a model as a folder, with hashes (manifest.py)
    weights_address.py   a model whose weights lie on a volume, and its small files in a registry
    weight_files.py      the tensors of such a folder, one by one
    published.py         names of released weights, and ours
    attention.py         chooses an attention kernel, training_attention.py that of transformers' models;
                         cpu_kernels.py has faster ones for bfloat16 on a CPU, fused_kernels.py has the loss
                         and norms of liger-kernel

A conversation becomes token ids in which every position of an image has a token. `Vargpt.embed` puts words,
features of input images and tokens of drawn images at their positions, the language model reads them, its
head predicts the words, and the visual decoder predicts the codes of drawn images from the states at their
positions.
"""
