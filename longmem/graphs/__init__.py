"""Decode steps of the whole model as CUDA graphs.

A step without a look-up does the same work every time: the model's layers, one token of each session
appended to its buffers, attention over what lies in them. What differs from step to step (which
sessions, where their buffers lie, how far they are filled, which tokens) is in tables on the device,
so that one captured graph serves all sessions, and the host launches it with one copy and one call.
Sessions hear of the tokens later, many at once (`SessionMemory.stepped`).

A step at which every layer looks up is another graph (`RefreshGraphs`): blocks that are due are closed
before it; in it the device chooses blocks by what the queries of that very step are, finds where they
lie in tables of the session, and places them; the choice is downloaded once, at the end. A look-up that
needs the host in between is read layer by layer, as everything is where there are no graphs: one that
depends on a policy's view of the queries, each KV head's own choice, blocks that a codec wrote or that
lie in the store alone, keys turned by their block's rank, neighbours of chosen blocks, index groups, or
fewer blocks than are chosen.
"""

from longmem.graphs.runner import Graph, StepGraphs, Wanted

__all__ = ["Graph", "StepGraphs", "Wanted"]
