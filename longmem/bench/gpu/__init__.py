"""`longmem bench gpu`: the kernels and the engine on a GPU, checked first and measured second."""
