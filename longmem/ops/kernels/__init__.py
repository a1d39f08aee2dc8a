"""What the Triton kernels of all ops have in common: where they run, and how they are launched."""

from longmem.ops.kernels.configs import Launch, launch_of
from longmem.ops.kernels.form import Form
from longmem.ops.kernels.launching import launch
from longmem.ops.kernels.serving import DIMS, DTYPES, interpreted, kernels_serve

__all__ = [
    "DIMS",
    "DTYPES",
    "Form",
    "Launch",
    "interpreted",
    "kernels_serve",
    "launch",
    "launch_of",
]
