"""Fetching from a server of our own: whole, resumed, broken, changed, damaged."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flsys_ray.data.fetch import Download, fetch
from flsys_ray.errors import DataInvalid, TryLater

CONTENT = bytes(range(256)) * 8192  # 2 MiB: two chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Owner(ThreadingHTTPServer):
    """An owner's server: ranges, a validator, and the ways in which it may fail."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), OwnersPage)
        self.content, self.etag, self.break_after, self.status, self.requests = CONTENT, '"one"', None, None, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/data.zip"


class OwnersPage(BaseHTTPRequestHandler):
    def do_GET(self):
        owner = self.server
        owner.requests.append(dict(self.headers))
        if owner.status:
            self.send_response(owner.status)
            self.end_headers()
            return
        first = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.headers.get("If-Range") == owner.etag:
            first = int(asked[1])
        if first >= len(owner.content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if owner.etag:
            self.send_header("ETag", owner.etag)
        self.send_header("Content-Length", str(len(owner.content) - first))
        self.end_headers()
        last = owner.break_after or len(owner.content)
        self.wfile.write(owner.content[first:last])

    def log_message(self, *args):
        pass


@pytest.fixture
def owner():
    with Owner() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_comes_whole_and_is_not_fetched_again(owner, tmp_path):
    told = []
    download = Download(owner.url, "data.zip", SHA256)
    path = fetch(download, tmp_path, lambda what, done, total: told.append((what, done, total)))
    assert path.read_bytes() == CONTENT
    assert told[-1] == ("data.zip", len(CONTENT), len(CONTENT))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.zip"]
    fetch(download, tmp_path)
    assert len(owner.requests) == 1


def test_a_broken_transfer_goes_on_where_it_stopped(owner, tmp_path):
    owner.break_after = 1_500_000
    download = Download(owner.url, "data.zip", SHA256)
    with pytest.raises(TryLater, match="run the same command again"):
        fetch(download, tmp_path)
    assert not (tmp_path / "data.zip").exists()
    held = (tmp_path / "data.zip.part").stat().st_size
    assert held > 0
    owner.break_after = None
    assert fetch(download, tmp_path).read_bytes() == CONTENT
    assert owner.requests[-1]["Range"] == f"bytes={held}-"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.zip"]


def test_a_file_that_changed_meanwhile_is_begun_anew(owner, tmp_path):
    owner.break_after = 1_500_000
    with pytest.raises(TryLater):
        fetch(Download(owner.url, "data.zip"), tmp_path)
    owner.break_after, owner.etag, owner.content = None, '"two"', CONTENT[::-1]
    assert fetch(Download(owner.url, "data.zip"), tmp_path).read_bytes() == CONTENT[::-1]


def test_without_a_validator_a_part_is_not_trusted(owner, tmp_path):
    owner.break_after, owner.etag = 1_500_000, ""
    with pytest.raises(TryLater):
        fetch(Download(owner.url, "data.zip"), tmp_path)
    owner.break_after = None
    assert fetch(Download(owner.url, "data.zip", SHA256), tmp_path).read_bytes() == CONTENT
    assert "Range" not in owner.requests[-1]


def test_a_part_longer_than_the_file_is_begun_anew(owner, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(CONTENT + b"more")
    (tmp_path / "data.zip.part.tag").write_text(owner.etag)
    assert fetch(Download(owner.url, "data.zip", SHA256), tmp_path).read_bytes() == CONTENT
    assert len(owner.requests) == 2


def test_a_whole_part_left_behind_does_no_harm(owner, tmp_path):
    """The process died between the last byte and the renaming: the server answers 416."""
    (tmp_path / "data.zip.part").write_bytes(CONTENT)
    (tmp_path / "data.zip.part.tag").write_text(owner.etag)
    assert fetch(Download(owner.url, "data.zip", SHA256), tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_stays(owner, tmp_path):
    with pytest.raises(DataInvalid, match="damaged, or changed by its owner"):
        fetch(Download(owner.url, "data.zip", "0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_checksum_is_noted_and_holds_from_then_on(owner, tmp_path):
    download = Download(owner.url, "data.zip")
    fetch(download, tmp_path).unlink()
    assert (tmp_path / "data.zip.sha256").read_text().strip() == SHA256
    owner.content = CONTENT[::-1]
    with pytest.raises(DataInvalid, match=SHA256):
        fetch(download, tmp_path)


def test_damage_on_disk_is_found(owner, tmp_path):
    download = Download(owner.url, "data.zip", SHA256)
    fetch(download, tmp_path).write_bytes(b"half of it")
    with pytest.raises(DataInvalid):
        fetch(download, tmp_path)


@pytest.mark.parametrize(
    ("status", "error"), [(404, DataInvalid), (403, DataInvalid), (503, TryLater), (429, TryLater)]
)
def test_refusals_of_the_server_are_told_apart(owner, tmp_path, status, error):
    owner.status = status
    with pytest.raises(error, match=str(status)):
        fetch(Download(owner.url, "data.zip"), tmp_path)


def test_no_server_at_all(tmp_path):
    with Owner() as gone:
        url = gone.url
    with pytest.raises(TryLater, match="--from"):
        fetch(Download(url, "data.zip"), tmp_path)
