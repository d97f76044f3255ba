"""What only S3 can show: faults between us and it, uploads in parts, signed addresses, URIs, and clear errors.

The property: whatever happens on the way, a call either has its effect exactly once and says so, or says
`StoreUnavailable`. It never tells a writer of its own object that the object exists already.
"""

import base64
import contextlib
import hashlib
import http.client
import logging
import random
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import BUCKET, ENVIRONMENT, FAULTS, SECRET, client_of, s3_with_keys

from flsys_ray.cloud import places
from flsys_ray.errors import AlreadyExists, Changed, InvalidInput, Missing, StoreUnavailable
from flsys_ray.storage.s3 import S3Store
from flsys_ray.storage.s3_place import MIN_PART_BYTES, parse_place
from flsys_ray.storage.uri import open_store

TRIES = 4
LARGE = MIN_PART_BYTES + 100  # two parts


@pytest.fixture(scope="module")
def server():
    with s3_with_keys() as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as made:
        yield made


@pytest.fixture(scope="module")
def hasty(server):
    """A client that hangs up soon: for answers that never come."""
    with client_of(server, read_timeout_s=0.5) as made:
        yield made


@pytest.fixture
def new_store(server, client):
    """Return a function that opens a store on an empty prefix; no fault of another test is left."""
    server.gate.faults.clear()

    def make(**options):
        uri = server.uri(tries=TRIES, multipart_bytes=MIN_PART_BYTES, **options)
        return S3Store(parse_place(uri), client, pause=lambda seconds: None)

    yield make
    server.gate.faults.clear()
    server.gate.max_keys = None


# Faults on the way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_every_verb_survives_one_fault(server, new_store, hasty, fault):
    store = new_store()
    if "late" in fault:
        store = S3Store(store.place, hasty, pause=lambda seconds: None)
    server.gate.faults[:] = [fault]
    first = store.put_new("k", b"one")
    assert store.get("k").etag == first
    server.gate.faults[:] = [fault]
    second = store.swap("k", b"two", first)
    server.gate.faults[:] = [fault]
    found = store.get("k")
    assert (found.body, found.size, found.etag) == (b"two", 3, second)
    server.gate.faults[:] = [None if fault == "garbled" else fault]  # no checksum covers a range
    assert store.get("k", 1, 2).body == b"w"
    server.gate.faults[:] = [fault]
    assert store.get("k", 0, 0).etag == second
    server.gate.faults[:] = [None if fault == "garbled" else fault]
    assert list(store.list("")) == ["k"]
    assert server.gate.faults == []


faults = st.lists(st.one_of(st.none(), st.sampled_from([fault for fault in FAULTS if "late" not in fault])), max_size=9)
writes = st.lists(st.tuples(st.sampled_from(["put", "swap", "stale"]), st.sampled_from("ab"), faults), max_size=6)


@settings(max_examples=60)
@given(steps=writes)
def test_no_sequence_of_faults_makes_a_call_lie(server, client, steps):
    """Against a dictionary. What was in doubt is looked up, as a caller would, and may be either."""
    place = parse_place(server.uri(tries=TRIES))
    store = S3Store(place, client, pause=lambda seconds: None)
    known: dict[str, tuple[bytes, str]] = {}
    for number, (verb, key, ahead) in enumerate(steps):
        body = b"%d" % number
        before = known.get(key)
        expected = expectation(verb, before)
        server.gate.faults[:] = ahead
        try:
            if verb == "put":
                etag = store.put_new(key, body)
            else:
                etag = store.swap(key, body, before[1] if before and verb == "swap" else "stale")
            assert expected is None
            known[key] = (body, etag)
        except StoreUnavailable:
            server.gate.faults.clear()
            found = look(store, key)
            assert found == before or (expected is None and found[0] == body)
            if found:
                known[key] = found
        except (AlreadyExists, Changed, Missing) as error:
            told = type(error)
            assert told is expected
        server.gate.faults.clear()
        assert look(store, key) == known.get(key)


def expectation(verb, before):
    if verb == "put":
        return AlreadyExists if before else None
    return Missing if before is None else Changed if verb == "stale" else None


def look(store, key):
    with contextlib.suppress(Missing):
        found = store.get(key)
        return found.body, found.etag
    return None


@pytest.mark.parametrize("length", [TRIES - 1, TRIES])
@pytest.mark.parametrize("fault", ["503-after", "reset-after"])
def test_what_was_done_and_not_heard_is_a_success_as_long_as_there_are_tries(server, new_store, fault, length):
    store = new_store()
    server.gate.faults[:] = [fault] * length
    if length == TRIES:
        with pytest.raises(StoreUnavailable, match=f"after {TRIES} tries"):
            store.put_new("k", b"x")
    else:
        store.put_new("k", b"x")
    assert store.get("k").body == b"x"
    with pytest.raises(AlreadyExists):
        store.put_new("k", b"x")


def test_identical_bytes_of_another_writer_are_not_ones_own(server, new_store):
    """Two owners that write the same must not both believe that they were first."""
    store = new_store()
    store._pause = lambda seconds: S3Store(store.place, store._client).put_new("k", b"same") and None
    server.gate.faults[:] = ["503-before"]
    with pytest.raises(AlreadyExists):
        store.put_new("k", b"same")


@pytest.mark.parametrize("verb", ["put", "swap"])
def test_an_own_write_that_another_has_replaced_since_is_not_called_refused(server, new_store, verb):
    """The caller would do it again, and a counter count twice."""
    store = new_store()

    def replace(seconds):
        found = store.get("k")
        assert found.body == b"mine"
        S3Store(store.place, store._client).swap("k", b"theirs", found.etag)

    first = store.put_new("k", b"0") if verb == "swap" else ""
    store._pause = replace
    server.gate.faults[:] = ["reset-after"]
    with pytest.raises(StoreUnavailable, match="replaced before it was known"):
        store.swap("k", b"mine", first) if verb == "swap" else store.put_new("k", b"mine")
    assert store.get("k").body == b"theirs"


def test_a_swap_that_lost_after_a_fault_is_changed(server, new_store):
    store = new_store()
    first = store.put_new("k", b"0")
    store._pause = lambda seconds: S3Store(store.place, store._client).swap("k", b"theirs", first) and None
    server.gate.faults[:] = ["503-before"]
    with pytest.raises(Changed):
        store.swap("k", b"mine", first)
    assert store.get("k").body == b"theirs"


def test_the_time_of_all_tries_is_bounded(server, client):
    place = parse_place(server.uri(tries=1000, total_s=0.001))
    store = S3Store(place, client, pause=lambda seconds: pytest.fail("no time is left to wait"))
    server.gate.faults[:] = ["503-before"] * 1000
    with pytest.raises(StoreUnavailable, match="after 1 tries") as caught:
        store.get("k")
    server.gate.faults.clear()
    assert caught.value.retry_after_s > 0


def test_pauses_are_drawn_below_a_bound_that_doubles(server, new_store):
    random.seed(0)
    store, pauses = new_store(), []
    store._pause = pauses.append
    for _ in range(40):
        server.gate.faults[:] = ["503-before"] * TRIES
        with pytest.raises(StoreUnavailable):
            store.get("k")
    for number in range(TRIES - 1):
        column = pauses[number :: TRIES - 1]
        bound = 0.1 * 2**number
        assert 0 <= min(column) < bound / 4
        assert bound * 3 / 4 < max(column) <= bound


def test_botocore_repeats_nothing_by_itself(server, new_store):
    store = new_store()
    server.gate.seen.clear()
    server.gate.faults[:] = ["500-before"] * TRIES
    with pytest.raises(StoreUnavailable):
        store.put_new("k", b"")
    assert len(server.gate.seen) == TRIES


# Large objects ---------------------------------------------------------------------------------------------------


def uploads(store):
    return store._client.list_multipart_uploads(Bucket=BUCKET, Prefix=store.place.prefix).get("Uploads", [])


def test_large_objects_go_up_in_parts_under_the_same_conditions(server, new_store):
    store = new_store()
    body = bytes(range(256)) * (LARGE // 256 + 1)
    etag = store.put_new("big", body)
    assert etag.endswith("-2")
    assert store.get("big").body == body
    assert (
        store.get("big", MIN_PART_BYTES - 3, MIN_PART_BYTES + 3).body == body[MIN_PART_BYTES - 3 : MIN_PART_BYTES + 3]
    )
    with pytest.raises(AlreadyExists):
        store.put_new("big", b"x" + body)
    second = store.swap("big", body[::-1], etag)
    with pytest.raises(Changed):
        store.swap("big", body, etag)
    assert (store.get("big").body, store.get("big").etag) == (body[::-1], second)
    with pytest.raises(Missing):
        store.swap("none", body, etag)
    assert uploads(store) == []


@pytest.mark.parametrize("at", range(4))  # begin, two parts, complete
@pytest.mark.parametrize("fault", ["503-before", "503-after", "reset-before", "reset-after", "409-before"])
def test_a_fault_at_any_step_of_a_large_object_leaves_one_object_and_no_parts(server, new_store, at, fault):
    store = new_store()
    body = b"x" * LARGE
    server.gate.faults[:] = [*[None] * at, fault]
    etag = store.put_new("big", body)
    assert store.get("big").etag == etag
    assert store.get("big").size == LARGE
    begun_unheard = at == 0 and fault.endswith("after")  # nobody knows this upload: the lifecycle rule removes it
    assert len(uploads(store)) == begun_unheard


# Signed addresses ------------------------------------------------------------------------------------------------


def send(url, headers, body, method="PUT"):
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.putrequest(method, f"{parts.path}?{parts.query}", skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def sha256(body):
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


def test_a_signed_address_creates_one_object_once(new_store):
    store = new_store()
    body = b"update"
    signed = store.presigned_put("rounds/1/a", len(body), 600, sha256(body))
    assert send(signed.url, signed.headers, body) == 200
    assert store.get("rounds/1/a").body == body
    assert send(signed.url, signed.headers, body) == 412
    with pytest.raises(AlreadyExists):
        store.put_new("rounds/1/a", body)
    etag = store.get("rounds/1/a").etag
    assert store.get("rounds/1/a").etag != store.swap("rounds/1/a", b"2", etag)


def test_a_signed_address_is_good_for_nothing_else(new_store):
    store = new_store()
    signed = store.presigned_put("k", 4, 600, sha256(b"good"))
    assert send(signed.url, signed.headers | {"Content-Length": "5"}, b"good!") == 403
    assert send(signed.url, {k: v for k, v in signed.headers.items() if k != "If-None-Match"}, b"good") == 403
    assert send(signed.url, signed.headers | {"x-amz-checksum-sha256": sha256(b"evil")}, b"evil") == 403
    assert send(signed.url.replace("/k?", "/other?"), signed.headers, b"good") == 403
    assert send(signed.url, signed.headers, b"good", method="DELETE") == 403
    assert list(store.list("")) == []
    assert send(signed.url, signed.headers, b"good") == 200


def test_a_signed_address_says_what_it_binds_and_for_how_long(new_store):
    query = parse_qs(urlsplit(new_store().presigned_put("k", 4, 90, sha256(b"good")).url).query)
    assert query["X-Amz-Expires"] == ["90"]
    assert {"content-length", "host", "if-none-match", "x-amz-checksum-sha256"} <= set(
        query["X-Amz-SignedHeaders"][0].split(";")
    )
    assert SECRET not in str(query)


def test_a_signed_address_is_of_the_buckets_own_region(monkeypatch):
    """Amazon's global address redirects, and a redirected signature does not match."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    hosts = {
        "bucket": "bucket.s3.eu-west-1.amazonaws.com",
        "my.bucket": "s3.eu-west-1.amazonaws.com",
    }
    for bucket, host in hosts.items():
        signed = S3Store(parse_place(f"s3://{bucket}/p?region=eu-west-1")).presigned_put("k", 1, 60)
        assert urlsplit(signed.url).netloc == host


@pytest.mark.parametrize(("key", "size", "expires_s"), [("../k", 1, 60), ("k", -1, 60), ("k", 1, 0), ("k", 1, 1e9)])
def test_a_signed_address_is_refused_for_what_cannot_be(new_store, key, size, expires_s):
    with pytest.raises(InvalidInput):
        new_store().presigned_put(key, size, expires_s)


# Listing ---------------------------------------------------------------------------------------------------------


def test_listing_goes_on_over_pages_and_through_faults(server, new_store):
    store = new_store()
    keys = [f"a/{number}" for number in range(10)]
    for key in keys:
        store.put_new(key, b"")
    server.gate.max_keys = 4
    server.gate.seen.clear()
    server.gate.faults[:] = ["503-before", None, "reset-after", "truncated"]
    assert list(store.list("a/")) == keys
    assert len(server.gate.seen) == 6
    server.gate.seen.clear()
    assert list(store.list("a/", after="a/7")) == keys[8:]
    assert len(server.gate.seen) == 1


def test_what_others_left_in_the_bucket_is_not_listed(new_store, client):
    store = new_store()
    for name in ("", "folder/", ".hidden", "a b", "../x"):
        client.put_object(Bucket=BUCKET, Key=store.place.prefix + name, Body=b"")
    client.put_object(Bucket=BUCKET, Key=store.place.prefix.rstrip("/") + "-neighbour/k", Body=b"")
    store.put_new("folder/k", b"")
    assert list(store.list("")) == ["folder/k"]


# Errors, and what they do not say --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("AccessDenied", 403, "access denied"),
        ("InvalidAccessKeyId", 403, "access denied"),
        ("SignatureDoesNotMatch", 403, "access denied"),
        ("ExpiredToken", 400, "credentials have expired"),
        ("AuthorizationHeaderMalformed", 400, "another region"),
        ("NoSuchBucket", 404, "no bucket"),
        ("MethodNotAllowed", 405, "refused with 405 MethodNotAllowed"),
    ],
)
def test_what_an_operator_must_mend_is_said_once_and_without_secrets(
    server, new_store, monkeypatch, code, status, said
):
    store = new_store()
    server.gate.seen.clear()
    monkeypatch.setattr(type(server.gate), "_ask", lambda self, environ: wrong(code, status))
    for call in (
        lambda: store.put_new("k", b""),
        lambda: store.swap("k", b"", "etag"),
        lambda: store.get("k"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreUnavailable, match=said) as caught:
            call()
        assert store.place.name in caught.value.message
        assert SECRET not in caught.value.message
        assert caught.value.retry_after_s >= 30
    assert len(server.gate.seen) == 4


def wrong(code, status):
    body = f"<Error><Code>{code}</Code><Message>{SECRET}</Message></Error>".encode()
    return f"{status} No", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))], body


def test_a_bucket_that_is_not_there_is_named(server):
    store = open_store(server.uri("p").replace(BUCKET, "nobody-has-this"))
    with pytest.raises(StoreUnavailable, match=r"s3://nobody-has-this/p/: there is no bucket 'nobody-has-this'"):
        store.put_new("k", b"")


def test_no_credentials_are_said_to_be_missing(server, monkeypatch, tmp_path):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreUnavailable, match="no usable AWS credentials"):
        open_store(server.uri()).put_new("k", b"")


def test_nothing_secret_is_logged(server, new_store, caplog):
    caplog.set_level(logging.INFO)
    store = new_store()
    server.gate.faults[:] = ["503-before"]
    store.put_new("k", b"")
    assert SECRET not in caplog.text


# URIs ------------------------------------------------------------------------------------------------------------


def test_a_uri_says_where_and_how():
    place = parse_place(
        "s3://my-bucket/a/b/?endpoint_url=http://minio:9000&region=eu-west-1&path_style=false"
        "&connect_timeout_s=1&read_timeout_s=2.5&connections=7&tries=3&total_s=9&multipart_bytes=6000000"
    )
    assert (place.bucket, place.prefix, place.name) == ("my-bucket", "a/b/", "s3://my-bucket/a/b/")
    assert (place.endpoint_url, place.region, place.path_style) == ("http://minio:9000", "eu-west-1", False)
    assert (place.connect_timeout_s, place.read_timeout_s, place.connections) == (1.0, 2.5, 7)
    assert (place.tries, place.total_s, place.multipart_bytes) == (3, 9.0, 6_000_000)


def test_an_endpoint_of_ones_own_has_its_bucket_in_the_path_and_aws_has_not():
    assert parse_place("s3://bucket?endpoint_url=http://minio:9000").path_style
    assert not parse_place("s3://bucket").path_style
    assert parse_place("s3://bucket").prefix == parse_place("s3://bucket/").prefix == ""


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://KEYID:topsecret@bucket/p", "no credentials"),
        ("s3://bucket/p?aws_secret_access_key=topsecret", "'aws_secret_access_key'.*AWS configuration only"),
        ("s3://bucket/p?AccessKey=topsecret", "'AccessKey'.*AWS configuration only"),
        ("s3://bucket/p?session_token=topsecret", "AWS configuration only"),
        ("s3://bucket/p?endpoint_url=http://a:topsecret@host", "option 'endpoint_url'"),
        ("s3://bucket/p?endpoint_url=ftp://host", "option 'endpoint_url'"),
        ("s3://bucket/p?colour=red", "unknown option 'colour'"),
        ("s3://bucket/p?tries=0", "option 'tries'"),
        ("s3://bucket/p?tries=many", "option 'tries'"),
        ("s3://bucket/p?total_s=nan", "option 'total_s'"),
        ("s3://bucket/p?multipart_bytes=100", "option 'multipart_bytes'"),
        ("s3://bucket/p?path_style=yes", "option 'path_style'"),
        ("s3://bucket/p?region=eu west", "option 'region'"),
        ("s3://Bucket/p", "not the name of a bucket"),
        ("s3:///p", "not the name of a bucket"),
        ("s3:bucket/p", "not the name of a bucket"),
        ("s3://bucket/../p", "is not a key"),
        ("s3://bucket/a//p", "is not a key"),
        ("s3://bucket/%2e%2e/p", "is not a key"),
        ("s3://bucket/" + "a/" * 200 + "a", "at most 256"),
        ("s3://bucket/p#part", "no part behind"),
    ],
)
def test_a_uri_that_cannot_be_is_refused_by_name_and_tells_no_secret(uri, said):
    with pytest.raises(InvalidInput, match=said) as caught:
        open_store(uri)
    assert "topsecret" not in caught.value.message


def test_without_boto3_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "from flsys_ray.storage.uri import open_store\n"
        "from flsys_ray.errors import InvalidInput\n"
        "try: open_store('s3://bucket')\n"
        "except InvalidInput as error: print(error.message)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'flsys-ray[s3]'" in done.stdout


# Places ----------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,5}", fullmatch=True)


@given(
    apps=st.lists(names, min_size=1, max_size=3), models=st.lists(names, min_size=1, max_size=3), n=st.integers(0, 99)
)
def test_the_cloud_makes_no_key_that_is_the_folder_of_another(apps, models, n):
    """S3 would let it pass, a folder would not: the cloud must never ask."""
    keys = {places.SIGNING_KEY, places.OPERATOR_KEY}
    for app in apps:
        keys.add(places.app(app))
        for name in models:
            model = f"{app}/{name}"
            keys |= {places.listed(model), places.log_entry(model, n), places.version(model, n)}
            keys |= {make(model, "0" * 64) for make in (places.plan, places.program, places.weights, places.optimizer)}
            for make in (places.update, places.evaluation, places.version_evaluation):
                keys.add(make(model, n, "00000000-1", "d-1"))
    folders = {key[:at] for key in keys for at, letter in enumerate(key) if letter == "/"}
    assert not folders & keys
