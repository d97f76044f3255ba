"""What `make check` makes of a report of vulnerabilities."""

import json

import audit
import pytest

FLAW = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"], "description": "bad"}


def text(*packages: dict) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def package(*flaws: dict) -> dict:
    return {"name": "thing", "version": "1.0", "vulns": list(flaws)}


SKIPPED = {"name": "other", "skip_reason": "not found"}


def test_a_vulnerability_fails_and_says_what_mends_it():
    lines, status = audit.judged(text(package(FLAW), SKIPPED), {})
    assert status == 1
    assert lines == [
        "thing 1.0: PYSEC-1; fixed in 2.0",
        "audit: 1 of 2 packages looked at, 1 vulnerabilities",
    ]


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_one_with_a_reason_does_not(name):
    lines, status = audit.judged(text(package(FLAW)), {name: "never called"})
    assert (lines, status) == (["audit: 1 of 1 packages looked at, 0 vulnerabilities"], 0)


def test_another_ones_reason_does_not_count_and_is_named():
    lines, status = audit.judged(text(package(FLAW)), {"CVE-2": "gone"})
    assert status == 1
    assert "CVE-2 in audit-allowed.txt is not needed any more" in lines


@pytest.mark.parametrize("report", ["", "x", "{}", "[]", "null", text(), text(SKIPPED)])
def test_without_an_answer_it_is_one_line_and_no_failure(report):
    lines, status = audit.judged(report, {})
    assert status == 0
    assert len(lines) == 1
    assert lines[0].startswith("audit skipped: ")


def test_an_id_needs_a_reason():
    assert audit.allowed("# a comment\nCVE-1 because # of this\n\n") == {"CVE-1": "because"}
    with pytest.raises(ValueError, match="CVE-1"):
        audit.allowed("CVE-1\n")
    assert audit.allowed(audit.ALLOWED.read_text()) == {}
