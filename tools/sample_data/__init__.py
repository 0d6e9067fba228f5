"""Sample data in the layout of CelebV-Text: what `tools/make_sample_data.py` makes.

`captions` is the language (facts, sentences, prompts), `scenes` decides what each clip shows, `drawing` turns a scene
into frames, `encode` turns frames into mp4, `footage` fetches and cuts free clips, `dataset` writes the folder.
Invariant: everything about clip i depends on (seed, i) alone, so any number of clips can be made in any order.
"""
