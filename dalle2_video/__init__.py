"""DALL-E 2-style text-to-video: models, diffusion, data and training. Knows nothing of Slurm."""
