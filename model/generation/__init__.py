"""Replies of the model: text token by token and images scale by scale, many requests in one batch.

    generate.py               Request -> Reply: the loop over a batch of requests; `generate` is the way in
    images.py                 draws the images that requests wait for, from the coarsest scale to the finest
    cached_language_model.py  feeds the language model step by step, and keeps what it has read
    key_value_cache.py        the language model's keys and values of all requests, one row each; the visual
                              decoder's are in model/visual_decoder.py
    sampling.py               SamplingParams of a request; choosing tokens and codes from logits

All requests write text together, one token a step. A request that has chosen the image start token waits
until none writes any more; then all that wait draw their images together, and text goes on after them.

To draw a scale, its embedded tokens pass the generation input projector, the cached language model, the
generation output projector and the visual decoder. Codes are sampled from its logits and added to the canvas,
which is the input of the next scale and, in the end, what the image tokenizer decodes.
"""
