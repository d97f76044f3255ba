"""The pure core: state machines and arithmetic, without I/O, clock, logging or global randomness.

It needs numpy, pydantic and the standard library, and can be read in an hour: start with `types`, then `coordinator`.
"""
