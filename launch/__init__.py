"""The launchers: one command a stage, the same on a Slurm login node and on one machine."""
