"""Sweeps over training plans with Ray Tune, around `flsys_ray.simulation`."""
