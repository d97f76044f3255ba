"""`/dashboard`: one page, served as it lies in the package. It asks the API for all that it shows, with a key."""

import base64
import hashlib
import re
from functools import lru_cache
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter()
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@lru_cache(maxsize=1)
def page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers: a browser runs nothing but the page's own script, and asks nobody but us."""
    html = resources.files(__name__).joinpath("page.html").read_text(encoding="utf-8")
    hashes = {kind: _hash(text) for kind, text in _INLINE.findall(html)}
    policy = (
        f"default-src 'none'; connect-src 'self'; script-src '{hashes['script']}'; style-src '{hashes['style']}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


@router.get("/dashboard", include_in_schema=False)
async def dashboard() -> HTMLResponse:
    """Return the page."""
    html, headers = page()
    return HTMLResponse(html, headers=headers)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
