"""Payloads that mean harm, made here: tensors, tokens and plans. Nothing of it comes from elsewhere."""

import base64
import hmac
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

BIG = 2**62


def framed(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a safetensors file with this header (text as it is, anything else as JSON) before the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensors(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield updates of a model of `size` parameters, each with one thing wrong, or far too much of it."""
    zeros = np.zeros(size, dtype="<f4")
    told = {"num_examples": "5", "loss": "1.0"}

    def update(data: bytes | None = None, metadata: Any = told, **entry: Any) -> bytes:
        delta = {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]} | entry
        return framed({"__metadata__": metadata, "delta": delta}, zeros.tobytes() if data is None else data)

    for shape in (
        [BIG, BIG],
        [2**63],
        [2**64],
        [-size],
        [],
        [size, 1],
        [1, size],
        [0],
        [size] * 100,
        ["x"],
        size,
        None,
    ):
        yield f"shape {shape}"[:60], update(shape=shape)
    for dtype in ("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "f32", "", None, 5, "F32" * 10_000):
        yield f"dtype {dtype}"[:60], update(dtype=dtype)
    ends = (
        [0, 0],
        [4 * size, 0],
        [0, 8 * size],
        [4, 4 * size + 4],
        [-4, 4 * size],
        [0, 2**64],
        [0, BIG],
        [1.5, 9],
        [0],
    )
    for offsets in ends:
        yield f"offsets {offsets}", update(data_offsets=offsets)
    one = {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}
    yield "overlapping tensors", framed({"__metadata__": told, "delta": one, "other": one}, zeros.tobytes())
    yield "a hole between tensors", framed({"__metadata__": told, "delta": one}, zeros.tobytes() + b"\0" * 4)
    entry = json.dumps(one)
    twice = f'{{"__metadata__": {json.dumps(told)}, "delta": {entry}, "delta": {entry}}}'
    yield "a name twice", framed(twice.encode(), zeros.tobytes())
    yield (
        "metadata twice",
        framed(
            f'{{"__metadata__": {json.dumps(told)}, "__metadata__": {{}}, "delta": {entry}}}'.encode(), zeros.tobytes()
        ),
    )
    yield "10,000 tensors", framed({f"t{n}": one for n in range(10_000)}, zeros.tobytes())
    yield (
        "a control that nobody asked for",
        framed({"__metadata__": told, "delta": one, "control": one}, zeros.tobytes()),
    )
    for number in (np.nan, np.inf, -np.inf, 1e38, -1e38, 1025.0):
        yield f"value {number}", update(np.full(size, number, dtype="<f4").tobytes())
    signalling = struct.pack("<I", 0x7F800001) * size
    yield "signalling NaN", update(signalling)
    last = zeros.copy()
    last[-1] = np.nan
    yield "one NaN at the end", update(last.tobytes())
    for count in ("0", "-1", "1e9", "9" * 400, "٣", "", " 5", "5 ", "0x5", "NaN", 5, None, [], "5\0"):
        yield f"num_examples {count!r}"[:60], update(metadata=told | {"num_examples": count})
    for loss in ("nan", "inf", "-inf", "1e999", "x", "", "1" * 5000, 1.0, None, "1_0" * 20):
        yield f"loss {loss!r}"[:60], update(metadata=told | {"loss": loss})
    for steps in ("0", "-5", "1.5", "9" * 30):
        yield f"num_steps {steps}", update(metadata=told | {"num_steps": steps})
    for metadata in (None, [], "x", {}, {"num_examples": {"a": "b"}}, {str(n): "x" for n in range(5000)}):
        yield f"metadata {metadata!r}"[:60], update(metadata=metadata)
    for length in (0, 1, 7, 2**16 + 1, 2**31, 2**63, 2**64 - 1):
        yield f"header of {length} bytes", framed({"delta": one}, zeros.tobytes(), length=length)
    for text in (b"[" * 60_000, b'{"a":' * 10_000, b"\xff\xfe", b"{}", b"null", b"[]", b'"x"', b"{" + b" " * 60_000):
        yield f"header {text[:12]!r}", framed(text, zeros.tobytes())
    for body in (b"", b"\0" * 7, b"\0" * 8, b"\xff" * 8, b"PK\x03\x04" * 20, b"\x1f\x8b" + b"\0" * 50):
        yield f"bytes {body[:10]!r} {len(body)}", body


def tokens(genuine: str, key: bytes, others: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield tokens near a genuine one that `key` signed, none of which may be taken for it."""
    head, body, signature = genuine.split(".")
    said = json.loads(_from64(body))
    for at in range(0, len(genuine), 3):
        for letter in ("A", "-", "."):
            if genuine[at] != letter and not _same(genuine, at, letter):
                yield f"letter {at} is {letter}", genuine[:at] + letter + genuine[at + 1 :]
    for cut in (1, len(signature) // 2, len(signature)):
        yield f"{cut} letters short", genuine[:-cut]
    for header in (
        {"alg": "none"},
        {"alg": "none", "kid": "1", "typ": "JWT"},
        {"alg": "HS512", "kid": "1", "typ": "JWT"},
        {"alg": "RS256", "kid": "1", "typ": "JWT"},
        {"alg": "HS256", "kid": "../../secrets/signing.json", "typ": "JWT"},
        {"alg": "HS256", "kid": "99", "typ": "JWT"},
        {"alg": "HS256", "kid": 1, "typ": "JWT"},
        {"alg": "HS256", "kid": ["1"], "typ": "JWT"},
        {"alg": "HS256", "kid": "1" * 5000, "typ": "JWT"},
        {"alg": "HS256", "kid": "1", "jku": "http://evil.test/keys", "typ": "JWT"},
        {"alg": "HS256", "kid": "1", "jwk": {"kty": "oct", "k": "AAAA"}, "typ": "JWT"},
        {"alg": "HS256", "kid": "1", "crit": ["exp"], "typ": "JWT"},
    ):
        yield f"header {header}"[:70], f"{_to64(json.dumps(header).encode())}.{body}.{signature}"
        yield f"header {header}, unsigned"[:80], f"{_to64(json.dumps(header).encode())}.{body}."
    for claims in ({}, said | {"exp": 0}, said | {"exp": 10**30}, said | {"kind": "operator"}, said | {"gen": -1}):
        yield f"claims {claims}"[:70], f"{head}.{_to64(json.dumps(claims).encode())}.{signature}"
    yield "signed with no key", jwt_like(head, body, b"")
    yield "signed with another key", jwt_like(head, body, b"x" * 32)
    for name, other in others.items():
        yield f"another kind: {name}", other
    for text in ("", ".", "..", "...", "a.b.c", "é.é.é", "\u0000", "A" * 8000, f"{genuine},{genuine}", f"{genuine} x"):
        yield f"text {text[:20]!r} {len(text)}", text


def jwt_like(head: str, body: str, key: bytes) -> str:
    """Return head and body with their MAC under a key."""
    return f"{head}.{body}.{_to64(hmac.digest(key, f'{head}.{body}'.encode(), 'sha256'))}"


def _same(token: str, at: int, letter: str) -> bool:
    """Return whether another letter says the same: the last one of a part has bits that mean nothing."""
    changed = token[:at] + letter + token[at + 1 :]
    if changed.count(".") != token.count("."):
        return False
    return [_from64(part) for part in changed.split(".")] == [_from64(part) for part in token.split(".")] and (
        at < len(token) - 1
    )


def _to64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _from64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def nested(depth: int, inner: str = "1", opening: str = '{"inner": ', closing: str = "}") -> str:
    """Return JSON (and YAML) of so many levels."""
    return opening * depth + inner + closing * depth


def plans() -> Iterator[tuple[str, str]]:
    """Yield texts of plans, JSON that is YAML too, that ask for far too much or make no sense."""
    for depth in (10, 100, 1000, 20_000):
        yield f"rules {depth} deep", '{"aggregation": ' + nested(depth, '"weighted_mean"') + "}"
        yield f"lists {depth} deep", '{"seed": ' + "[" * depth + "]" * depth + "}"
    for number in ("1e308", "1e309", "-1e309", "9" * 400, "1" + "0" * 5000, "NaN", "Infinity", "1e-400", "-0", "0.0"):
        for field in ("limits.max_abs_delta", "limits.max_norm", "limits.max_examples", "local.learning_rate",
                      "local.epochs", "pacing.cohort", "pacing.deadline_s", "seed", "stopping.versions"):  # fmt: skip
            head, _, tail = field.partition(".")
            value = f'{{"{tail}": {number}}}' if tail else number
            yield f"{field} {number[:12]}", f'{{"{head}": {value}}}'
    for text in ("\u0000", "\ud800", "\u202e", "a" * 100_000, "../../etc/passwd", "${jndi}", "'; DROP", "𝕨𝕞", "İ"):
        yield f"name {text[:10]!r}", json.dumps({"aggregation": text})
        yield f"field {text[:10]!r}", json.dumps({text: 1})
        yield f"rule's field {text[:10]!r}", json.dumps({"aggregation": {"name": "krum", text: text}})
    for field in ("pacing", "selection", "aggregation", "server_optimizer", "local", "eligibility", "limits"):
        for value in ("null", "[]", "5", "true", '""', '{"name": null}', '{"name": []}', '{"name": {"name": "x"}}'):
            yield f"{field} {value}", f'{{"{field}": {value}}}'
    yield "a key twice", '{"seed": 1, "seed": 2}'
    yield "10,000 fields", json.dumps({f"f{number}": number for number in range(10_000)})


def yaml_bombs() -> Iterator[tuple[str, str]]:
    """Yield YAML whose parsing or use may run away."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    yield "a billion laughs", "\n".join(lines)
    yield "a billion laughs in a field", "\n".join([*lines, "aggregation: *a29"])
    yield "a thing in itself", "aggregation: &a {name: krum, inner: *a}"
    yield "a list in itself", "seed: &a [*a]"
    yield (
        "merges",
        "\n".join(["m0: &m0 {x: 1}", *(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}" for n in range(1, 12))]),
    )
    yield "python", "!!python/object/apply:os.system ['true']"
    yield "a date that is none", "seed: 2021-13-45"
    yield "sexagesimal", "seed: " + "1:" * 10_000 + "1"
    yield "deep", "seed: " + "[" * 5000
    yield "many documents", "---\nseed: 1\n" * 1000
    yield "binary", "seed: !!binary aaaa="
    yield "not text", "seed: \x00\x01"
    yield "tabs", "limits:\n\tmax_norm: 1"
