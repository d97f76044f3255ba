"""Prints the OpenAPI document of the HTTP surface: `python -m flsys_ray.http.openapi > docs/openapi.json`."""

import json
import sys

from flsys_ray.http.app import create_app


def document() -> str:
    """Return the document as it is committed. Same code, same text."""
    return json.dumps(create_app().openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
