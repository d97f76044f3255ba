"""Ray actors: a clock and a mailbox around `flsys_ray` objects. Nothing here decides anything."""
