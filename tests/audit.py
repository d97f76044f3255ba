"""Are there known vulnerabilities in what `constraints.txt` pins? Part of `make check`.

    python tests/audit.py

Asks pip-audit, once, for at most 18 seconds. Where no network or no such service is to be had it says so in one line
and ends well. A vulnerability fails, unless `audit-allowed.txt` names its id and why it does not matter here.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ALLOWED = ROOT / "audit-allowed.txt"
LIMIT_S = 18.0
COMMAND = ("-r", "constraints.txt", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "3",
           "-f", "json")  # fmt: skip


def main() -> int:
    """Print what was found, and return the exit status."""
    text = report()
    lines, status = judged(text, allowed(ALLOWED.read_text())) if text else (["audit skipped: no answer"], 0)
    print("\n".join(lines))
    return status


def report() -> str:
    """Return pip-audit's report as JSON, or an empty text if there is none."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *COMMAND],
            cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip()


def allowed(text: str) -> dict[str, str]:
    """Return the reasons of an allow list by id. Raises `ValueError` for an id without a reason."""
    found = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        name, _, reason = line.partition(" ")
        if not reason.strip():
            raise ValueError(f"{ALLOWED.name}: {name} has no reason")
        found[name] = reason.strip()
    return found


def judged(text: str, excused: Mapping[str, str]) -> tuple[list[str], int]:
    """Return what to print about a report, and the exit status: 1 if a vulnerability is not excused."""
    try:
        packages: list[dict[str, Any]] = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return ["audit skipped: the answer is no report"], 0
    looked_at = [package for package in packages if "vulns" in package]
    if not looked_at:
        return [f"audit skipped: nothing is known here of any of the {len(packages)} packages"], 0
    bad, lines, used = 0, [], set()
    for package in looked_at:
        for flaw in package["vulns"]:
            ids = {flaw["id"], *flaw.get("aliases", ())}
            used |= ids & set(excused)
            if not ids & set(excused):
                bad += 1
                fixed = ", ".join(flaw.get("fix_versions", ())) or "none yet"
                lines.append(f"{package['name']} {package['version']}: {flaw['id']}; fixed in {fixed}")
    lines += [f"{name} in {ALLOWED.name} is not needed any more" for name in sorted(set(excused) - used)]
    lines.append(f"audit: {len(looked_at)} of {len(packages)} packages looked at, {bad} vulnerabilities")
    return lines, 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
