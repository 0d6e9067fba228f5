"""From the data set's files to training batches.

Writing: `archives` and `celebv_text` find clips and captions where they lie, `decode_process` decodes one clip with
`video` in a process that can be killed, `preprocess` makes one shard of each frame size a task with `shard_writer`, and
`join` makes the rest of the store: tables, tokenizer, `statistics`, `store_page`.
Reading: `store` opens what was written, `shard_reader` reads frames, `embeddings` adds the CLIP embeddings of windows,
`batches` turns global sample numbers into tensors with the stateless randomness of `keyed_random`, and `loading` has
that done ahead in processes of its own. `verification` reads all there is and says what is damaged; `legacy` reads the
old project's files.
Nothing here publishes files: writers fill a staging folder and return what to move where.
"""
