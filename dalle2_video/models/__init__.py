"""Networks: text and video encoders, CLIP, the diffusion prior, and the 3D U-Net of all video stages.

All of them keep the rules that ZeRO-3 sets: no 0-dimensional parameters, every parameter used in every forward (masks,
never branches), only inside the forward of the module that owns it, and initialised in that module's `__init__`. They
build under `torch.device("meta")`, take fp32 inputs whatever the precision of their weights, and return fp32.
"""
