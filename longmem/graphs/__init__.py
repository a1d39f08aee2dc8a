"""Recycled decode steps of the whole model as CUDA graphs.

A step without a look-up does the same work every time: the model's layers, one token of each session
appended to its buffers, attention over what lies in them. What differs from step to step (which
sessions, where their buffers lie, how far they are filled, which tokens) is in tables on the device,
so that one captured graph serves all sessions, and the host launches it with one copy and one call.
Sessions hear of the tokens later, many at once (`SessionMemory.stepped`). Steps with a look-up are
read layer by layer from the host, as everything is where there are no graphs.
"""

from longmem.graphs.runner import Graph, StepGraphs, Wanted

__all__ = ["Graph", "StepGraphs", "Wanted"]
