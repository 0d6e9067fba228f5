"""Gaussian diffusion in continuous time: schedule, parameterisation of the network's output, loss and samplers.

Everything here is a pure function of its tensor arguments: no module state and no random numbers drawn inside, so that
a sample depends only on the noise its caller passes (drawn by key, see the data package). All maths runs in fp32.
"""
