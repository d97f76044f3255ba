"""Puts the saved outputs of the two commands into README.md, between `<!-- NAME output -->` and `<!-- end -->`.

.venv/bin/flsys demo --keep out | tee docs/pictures/demo.txt && cp out/demo.json docs/pictures/
make test | tee docs/pictures/test.txt
python docs/make_pictures.py && python docs/make_readme.py
"""

import re
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PLACE = re.compile(r"(<!-- (\w+) output -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(text: str) -> str:
    """Return the text with every output anew from `docs/pictures/NAME.txt`."""
    return PLACE.sub(lambda found: f"{found[1]}\n```text\n{_output(found[2])}\n```\n\n{found[3]}", text)


def _output(name: str) -> str:
    return (HERE / "pictures" / f"{name}.txt").read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    README.write_text(refreshed(README.read_text(encoding="utf-8")), encoding="utf-8")
