"""What the tokenizer promises for every text, and that another language reads the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flsys_ray.errors import InvalidInput
from flsys_ray.tokenizer import EMOTICONS, MAX_WORD, SAMPLES, Tokenizer, fnv1a

PAGE = Path(__file__).parents[2] / "docs" / "tokenizer.md"
OTHER = Path(__file__).with_name("tokenizer.mjs")
# Pieces where rules meet, so that drawn texts are not noise alone.
PIECES = (
    *EMOTICONS, "http://", "HTTPS://t.co/x", "www.", "wwww.x", "xhttp://y", "@", "@a_1", "@é", "#tag", "don't", "it''s",
    "'quoted'", "I\u2019m", "\u2018", "aaa", "AAAA", "éééé", "ß", "\u0130", "\u017f", "\u212a", "12", "3rd", "1,000.5",
    "!", "!!!", "?!", "\u2764\ufe0f", "\U0001f44d\U0001f3fd", "\U0001f468\u200d\U0001f469", "\U0001f602" * 2, "\u2026",
    "\u00a0", "\ufeff", "\u2028", "\x00", "\v", "日本語", "\U0010ffff", "\ud83d", "\ude02", "_", "-", "/", "\\", "<",
    "3", "D", "x" * 40,
)  # fmt: skip
mixed = st.lists(st.one_of(st.sampled_from(PIECES), st.sampled_from(" \n,.")), max_size=20).map("".join)
texts = st.one_of(st.text(), mixed)
tokenizers = st.builds(
    Tokenizer, buckets=st.sampled_from([2, 3, 97, 4096, 2**24]), length=st.integers(1, 50), pairs=st.booleans()
)


@given(texts, tokenizers)
def test_every_text_has_ids(text, tokenizer):
    ids = tokenizer.ids(text)
    assert (ids.shape, ids.dtype) == ((tokenizer.length,), np.int32)
    assert ids.min() >= 0
    assert ids.max() < tokenizer.buckets
    used = int((ids > 0).sum())
    assert (ids[:used] > 0).all(), "padding stands behind the last id only"
    words = len(tokenizer.words(text))
    assert used == min(tokenizer.length, 2 * words - 1 if tokenizer.pairs and words else words)


@given(texts)
def test_the_same_text_gives_the_same_tokens(text):
    assert Tokenizer().words(text) == Tokenizer().words(text)
    assert all(
        0 < len(token) <= max(MAX_WORD, len("<number>")) and " " not in token for token in Tokenizer().words(text)
    )


@given(texts, texts)
def test_a_space_between_texts_changes_neither(one, other):
    split = Tokenizer().words(f"{one} {other}")
    joined_surrogates = one[-1:] >= "\ud800" and other[:1] >= "\udc00"
    assert joined_surrogates or split == Tokenizer().words(one) + Tokenizer().words(other)


@given(st.lists(texts, max_size=5), tokenizers)
def test_a_batch_is_its_texts(batch, tokenizer):
    ids = tokenizer.batch(batch)
    assert ids.shape == (len(batch), tokenizer.length)
    assert all((row == tokenizer.ids(text)).all() for row, text in zip(ids, batch, strict=True))


@given(st.text(st.characters(codec="ascii")))
def test_ascii_case_means_nothing_outside_emoticons(text):
    plain = Tokenizer(emoticons={})
    assert plain.words(text.upper()) == plain.words(text.lower())


@given(tokenizers)
def test_the_asset_is_the_tokenizer(tokenizer):
    asset = tokenizer.to_json()
    assert Tokenizer.from_json(asset) == tokenizer
    assert Tokenizer.from_json(asset).to_json() == asset


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Thank you!!!", "thank you !!"),
        ("@united #BestFlight :)", "<user> bestflight <smile>"),
        ("Soooo goooood", "soo good"),
        ("don't DON’T dont", "dont dont dont"),
        ("see https://t.co/Ab?c=(d) now www.x.y", "see <url> now <url>"),
        ("it's 10:30, 2nd of 3", "its <number> <number> <number> nd of <number>"),
        ("why?? oh ? no ?!", "why ?? oh ? no ? !"),
        ("❤️👍🏽 café ÉTÉ", "❤ 👍 café ÉtÉ"),
        ("a—b…c\u00a0d", "a b c d"),
        (":D :Dude :-(", "<smile> dude <sad>"),
        ("mail me@home.org", "mail me <user> org"),
        ("\ud83d\ude02", "😂"),
        ("\ud83d x", "\ufffd x"),
        ("日本語 text", "日本語 text"),
    ],
)
def test_the_rules_by_example(text, tokens):
    assert " ".join(Tokenizer().words(text)) == tokens


def test_the_hash_is_fnv_1a():
    """Test vectors of RFC 9923."""
    assert [fnv1a(data) for data in (b"", b"a", b"foobar")] == [0x811C9DC5, 0xE40C292C, 0xBF9CF968]


def test_the_vectors_of_the_page_are_those_of_the_code():
    told = json.loads(PAGE.read_text().split("```json\n")[1].split("```")[0])
    tokenizer = Tokenizer.from_json(json.dumps(told).encode())
    assert json.loads(tokenizer.to_json()) == told
    assert [test["text"] for test in told["tests"]] == list(SAMPLES)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"algorithm": "other"}, {"buckets": 1}, {"buckets": "many"}, {"length": 0}, {"emoticons": []},
        {"emoticons": {"": "<smile>"}}, {"tests": [{"text": "a b", "tokens": ["a"]}]}, {"tests": None},
    ],
)  # fmt: skip
def test_an_asset_that_this_code_cannot_be_is_refused(change):
    with pytest.raises(InvalidInput, match="tokenizer"):
        Tokenizer.from_json(json.dumps({**json.loads(Tokenizer().to_json()), **change}).encode())


@given(st.binary(max_size=60))
def test_no_asset_breaks_the_reader(asset):
    with pytest.raises(InvalidInput):
        Tokenizer.from_json(asset)


def test_a_phone_loads_nothing_heavy_for_it():
    code = "import sys, flsys_ray.tokenizer; print(*{'pydantic', 'pyarrow', 'keras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@settings(max_examples=8, deadline=None)
@given(st.lists(texts, min_size=60, max_size=60), tokenizers)
def test_another_language_reads_the_same(batch, tokenizer):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the JavaScript reading cannot be compared")
    sent = json.dumps({"asset": json.loads(tokenizer.to_json()), "texts": [*batch, *SAMPLES]})
    done = subprocess.run([node, str(OTHER)], input=sent, capture_output=True, text=True, check=True, timeout=60)
    for text, found in zip([*batch, *SAMPLES], json.loads(done.stdout), strict=True):
        assert list(tokenizer.words(text)) == found["tokens"], repr(text)
        assert tokenizer.ids(text).tolist() == found["ids"], repr(text)
