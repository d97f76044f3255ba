"""Takes `docs/pictures/dashboard.png`: the dashboard of a cloud that is up, in a headless Chromium.

python docs/make_dashboard.py http://127.0.0.1:8000 APP_KEY har-wild
"""

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from chromium import Page  # noqa: E402  (of the tests)

WIDTH = 1120


def take(url: str, key: str, model: str, target: Path) -> None:
    """Open the dashboard with a key, choose a model, and save what is seen."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Page(Path(profile), width=WIDTH) as page:
        page.open(f"{url}/dashboard#{model}")
        page.run(f"document.getElementById('key').value = {key!r}")
        page.run("document.querySelector('form button').click()")
        page.until("document.querySelectorAll('#rounds tr').length")
        page.run("[...document.querySelectorAll('#rounds tr')].slice(6).forEach(row => row.remove())")
        page.picture(target)


if __name__ == "__main__":
    take(*sys.argv[1:4], HERE / "pictures" / "dashboard.png")
