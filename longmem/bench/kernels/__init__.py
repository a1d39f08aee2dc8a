"""The kernels by themselves: compiled for a GPU without one, checked, and tuned on one."""
