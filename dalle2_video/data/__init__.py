"""From the data set's files to training batches.

`celebv_text` finds clips and captions, `video` decodes, `preprocess` writes what `store` describes, `shard_reader`
reads it back, `embeddings` adds the CLIP embeddings of windows, and `batches` turns global sample numbers into tensors
with the stateless randomness of `keyed_random`. Nothing here publishes files: writers fill a staging folder and return
what to move where.
"""
