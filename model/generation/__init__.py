"""Replies of a model: text token by token, images scale by scale, many requests in one batch.

`generate` is the door. `images` draws, `cached_language_model` steps the language model over
`key_value_cache`, `sampling` chooses tokens and codes.
"""
