"""Command line tools round the suite: the demo, the tests, sample data, reports and benches.

They sit on top of everything else: nothing in `dalle2_video`, `experiments`, `slurm` or `launch` imports from here.
"""
