"""Downloads: whole, by range, conditional; the same bytes for ever. RFC 9110 sections 13 and 14."""

import hashlib

import pytest
from cloud_world import World, bearer, problem

FOR_EVER = "private, max-age=31536000, immutable"


@pytest.fixture
def get(world: World, key: str, tiny):
    """Return what asks for the program with some headers."""
    world.training(key)
    token = world.device(key, "one")

    def ask(path: str = f"/v1/models/tiny/program/{tiny.sha256}", **headers: str):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return world.http.get(path, headers=bearer(token) | named)

    return ask


def test_a_whole_program(get, tiny):
    reply = get()
    assert (reply.status_code, reply.content) == (200, tiny.data)
    assert reply.headers["content-type"] == "application/vnd.flsys.program"
    assert reply.headers["etag"] == f'"{tiny.sha256}"'
    assert reply.headers["flsys-sha256"] == tiny.sha256
    assert reply.headers["accept-ranges"] == "bytes"
    assert reply.headers["cache-control"] == FOR_EVER
    assert reply.headers["content-length"] == str(len(tiny.data))
    assert "content-range" not in reply.headers


def test_a_version_by_its_number_never_changes_and_the_latest_must_be_asked_for(world: World, key, get):
    zero = get("/v1/models/tiny/versions/0")
    assert zero.headers["cache-control"] == FOR_EVER
    assert zero.headers["content-type"] == "application/vnd.safetensors"
    assert zero.headers["flsys-version"] == "0"
    assert zero.headers["etag"] == f'"{hashlib.sha256(zero.content).hexdigest()}"'
    latest = get("/v1/models/tiny/versions/latest")
    assert latest.headers["cache-control"] == "private, no-cache"
    assert latest.content == zero.content
    assert get("/v1/models/tiny/versions/latest", If_None_Match=zero.headers["etag"]).status_code == 304
    world.commit(key)
    moved = get("/v1/models/tiny/versions/latest", If_None_Match=zero.headers["etag"])
    assert (moved.status_code, moved.headers["flsys-version"]) == (200, "1")
    assert get("/v1/models/tiny/versions/0").content == zero.content


def test_the_developer_reads_what_the_phones_read(world: World, key, get, tiny):
    for path in (f"/v1/models/tiny/program/{tiny.sha256}", "/v1/models/tiny/versions/0"):
        assert world.http.get(path, headers=bearer(key)).content == get(path).content


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=100-", 100, None),
        ("bytes=0-", 0, None),
        ("bytes=-50", -50, None),
        ("bytes=-99999999", 0, None),
        ("bytes=100-99999999", 100, None),
    ],
)
def test_a_range(get, tiny, asked, start, end):
    reply = get(Range=asked)
    size = len(tiny.data)
    first, last = range(size)[slice(start, end)][0], range(size)[slice(start, end)][-1]
    assert (reply.status_code, reply.content) == (206, tiny.data[start:end])
    assert reply.headers["content-range"] == f"bytes {first}-{last}/{size}"
    assert reply.headers["content-length"] == str(last - first + 1)
    assert reply.headers["etag"] == f'"{tiny.sha256}"'


@pytest.mark.parametrize("asked", ["bytes={size}-", "bytes={size}-{size}", "bytes=99999999-", "bytes=-0"])
def test_a_range_outside_of_the_object_is_refused_with_its_size(get, tiny, asked):
    reply = get(Range=asked.format(size=len(tiny.data)))
    assert str(len(tiny.data)) in problem(reply, 416, "range-unsatisfiable")["detail"]
    assert reply.headers["content-range"] == f"bytes */{len(tiny.data)}"


@pytest.mark.parametrize(
    "asked", ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=0-1,5-6", "lines=0-1", "bytes=0x0-1", "bytes=5"]
)
def test_a_range_that_is_not_understood_is_ignored(get, tiny, asked):
    reply = get(Range=asked)
    assert (reply.status_code, len(reply.content)) == (200, len(tiny.data))


@pytest.mark.parametrize("tag", ['"another"', "W/", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_range_of_another_object_gives_the_whole_of_this_one(get, tiny, tag):
    """A weak tag never matches (RFC 9110 section 13.1.5)."""
    given = f'W/"{tiny.sha256}"' if tag == "W/" else tag
    reply = get(Range="bytes=10-19", If_Range=given)
    assert (reply.status_code, reply.content) == (200, tiny.data)
    assert get(Range="bytes=99999999-", If_Range=given).status_code == 200


def test_a_range_of_the_same_object_goes_on(get, tiny):
    """A download that broke off after 100 bytes."""
    head = get(Range="bytes=0-99")
    rest = get(Range="bytes=100-", If_Range=head.headers["etag"])
    assert rest.status_code == 206
    assert head.content + rest.content == tiny.data


@pytest.mark.parametrize("given", ['"{sha}"', 'W/"{sha}"', '"x", "{sha}"', '"x" , W/"{sha}"', "*"])
def test_what_the_phone_has_already_is_not_sent(get, tiny, given):
    reply = get(If_None_Match=given.format(sha=tiny.sha256))
    assert (reply.status_code, reply.content) == (304, b"")
    assert reply.headers["etag"] == f'"{tiny.sha256}"'
    assert reply.headers["cache-control"] == FOR_EVER
    assert get(If_None_Match=given.format(sha=tiny.sha256), Range="bytes=0-9").status_code == 304


@pytest.mark.parametrize("given", ['"x"', "", "{sha}", '"{sha}x"'])
def test_what_the_phone_does_not_have_is_sent(get, tiny, given):
    assert get(If_None_Match=given.format(sha=tiny.sha256)).status_code == 200


def test_a_hash_that_nobody_stored_is_not_found_even_if_the_phone_says_it_has_it(get):
    nothing = "0" * 64
    for headers in ({}, {"If_None_Match": f'"{nothing}"'}, {"Range": "bytes=0-1"}):
        problem(get(f"/v1/models/tiny/program/{nothing}", **headers), 404, "not-found")
