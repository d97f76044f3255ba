"""`python -m flsys_ray` is `flsys`."""

from flsys_ray.cli import main

if __name__ == "__main__":
    main()
