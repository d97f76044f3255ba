"""Texts to numbers, the same in every language: the tokenizer that travels inside a program as `tokenizer.json`.

docs/tokenizer.md has the rules in words. They need no regular expressions, no Unicode tables and no vocabulary: a text
is read code point by code point, and what is read is hashed into a fixed number of buckets. So nothing is learnt from
anybody's texts in order to make it, and the asset is a page of JSON with test vectors in it.

>>> tokenizer = Tokenizer(buckets=4096, length=8)
>>> tokenizer.words("@united Sooooo late, thx :(")
('<user>', 'soo', 'late', 'thx', '<sad>')
>>> tokenizer.ids("so late").tolist()
[2427, 1261, 2905, 0, 0, 0, 0, 0]
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flsys_ray.errors import InvalidInput

ASSET = "tokenizer.json"
ALGORITHM = "flsys-text"
VERSION = 1
MAX_ASSET_BYTES = 1_000_000
MAX_WORD = 32
SMILES = (
    ":)",
    ":-)",
    "=)",
    ";)",
    ";-)",
    ":D",
    ":-D",
    "=D",
    ";D",
    "(:",
    "(-:",
    ":]",
    ":p",
    ":P",
    ":-P",
    "<3",
    "^^",
    "^_^",
)
FROWNS = (
    ":(",
    ":-(",
    "=(",
    ";(",
    ":'(",
    "):",
    ")-:",
    ":[",
    ":/",
    ":-/",
    ":\\",
    ":-\\",
    ":|",
    ":-|",
    ":S",
    "</3",
    "-_-",
)
EMOTICONS: Mapping[str, str] = {**dict.fromkeys(SMILES, "<smile>"), **dict.fromkeys(FROWNS, "<sad>")}
ADDRESSES = ("http://", "https://", "www.")
SAMPLES = (
    "",
    "Thank you!!! @united #BestFlight ever :)",
    "Soooooo late... don't fly w/ them https://t.co/AbC?x=1 :-(",
    "2 hrs on hold?? Really? That's 100% NOT ok",
    "I\u2019m happy \u2764\ufe0f\U0001f602\U0001f44d\U0001f3fd caf\u00e9 \u00c9T\u00c9",
    "a\tb\u00a0c\u2014d \ud83d :D :Dude",
)

_SPACES = "\t\n\v\f\r "
_DIGITS = "0123456789"
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_LATIN = frozenset(_UPPER + _LOWER)
_NAME = frozenset(_UPPER + _LOWER + _DIGITS + "_")
_LOWERED = str.maketrans(_UPPER, _LOWER)
_APOSTROPHES = "'\u2018\u2019"
_SYMBOLS = ((0x2190, 0x2BFF), (0x1F000, 0x1FAFF))
_DROPPED = ((0x200D, 0x200D), (0xFE00, 0xFE0F), (0x1F3FB, 0x1F3FF))
_SEPARATORS = ((0x80, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7), (0x2000, 0x206F), (0x3000, 0x303F))


@dataclass(frozen=True)
class Tokenizer:
    """Version 1 of the rules, with their three numbers.

    Attributes:
        buckets: ids lie in 0 .. buckets - 1; 0 is padding.
        length: L, ids of a text; what is beyond is cut off.
        pairs: whether each two neighbours give an id too ("not good" is not "good").
        emoticons: what each is read as. The longest that fits is taken.
    """

    buckets: int = 4096
    length: int = 64
    pairs: bool = True
    emoticons: Mapping[str, str] = field(default_factory=lambda: EMOTICONS, repr=False)

    def __post_init__(self) -> None:
        if not (2 <= self.buckets <= 2**24 and 1 <= self.length <= 2**16):
            raise InvalidInput(f"tokenizer: {self.buckets} buckets and length {self.length} are out of range")
        if not all(self.emoticons):
            raise InvalidInput("tokenizer: an emoticon has no characters")

    def words(self, text: str) -> tuple[str, ...]:
        """Return the tokens of a text, in order. Total: there is no text that it refuses."""
        return tuple(_Reader(_code_points(text), self.emoticons).tokens())

    def ids(self, text: str) -> NDArray[np.int32]:
        """Return `[L]` int32: the hashed tokens of a text, each after the pair that it ends; 0 after the last."""
        found = np.zeros(self.length, np.int32)
        features = self._features(text)
        for place, feature in zip(range(self.length), features, strict=False):
            found[place] = 1 + fnv1a(feature.encode()) % (self.buckets - 1)
        return found

    def batch(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Return the ids of N texts, `[N, L]`."""
        return np.stack([self.ids(text) for text in texts]) if texts else np.zeros((0, self.length), np.int32)

    def to_json(self) -> bytes:
        """Return the asset: the numbers, the emoticons, and test vectors for other implementations."""
        tests = [{"text": text, "tokens": list(self.words(text)), "ids": self._short(text)} for text in SAMPLES]
        says = {"algorithm": ALGORITHM, "version": VERSION, "buckets": self.buckets, "length": self.length}
        body = {**says, "pairs": self.pairs, "emoticons": dict(self.emoticons), "tests": tests}
        return json.dumps(body, indent=1).encode()

    @classmethod
    def from_json(cls, asset: bytes) -> "Tokenizer":
        """Read the asset of a program.

        Raises:
            InvalidInput: it is not one, is of a later version, or this code reads its test vectors in another way.
        """
        try:
            body: dict[str, Any] = json.loads(asset) if len(asset) <= MAX_ASSET_BYTES else {}
            kind = (body["algorithm"], body["version"])
            if kind != (ALGORITHM, VERSION):
                raise InvalidInput(f"{ASSET}: it is {kind[0]} {kind[1]}, this program reads {ALGORITHM} {VERSION}")
            emoticons = {str(key): str(value) for key, value in body["emoticons"].items()}
            made = cls(int(body["buckets"]), int(body["length"]), bool(body["pairs"]), emoticons)
            tests = [(str(test["text"]), [str(token) for token in test["tokens"]]) for test in body["tests"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            raise InvalidInput(f"{ASSET} cannot be read ({type(problem).__name__})") from problem
        for text, tokens in tests:
            if list(made.words(text)) != tokens:
                raise InvalidInput(f"{ASSET}: its test vector {text!r} comes out otherwise here")
        return made

    def _features(self, text: str) -> Iterator[str]:
        previous = ""
        for token in self.words(text):
            if self.pairs and previous:
                yield f"{previous} {token}"
            yield token
            previous = token

    def _short(self, text: str) -> list[int]:
        ids = self.ids(text)
        return [int(i) for i in ids[ids > 0]]


def fnv1a(data: bytes) -> int:
    """Return the 32-bit FNV-1a hash (Fowler, Noll, Vo; RFC 9923).

    >>> hex(fnv1a(b"foobar"))
    '0xbf9cf968'
    """
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def _code_points(text: str) -> str:
    """Return the text without lone surrogates: pairs are joined, others become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _within(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    point = ord(character)
    return any(first <= point <= last for first, last in ranges)


def _is_letter(character: str) -> bool:
    if character < "\x80":
        return character in _LATIN
    return not any(_within(character, ranges) for ranges in (_SYMBOLS, _DROPPED, _SEPARATORS))


class _Reader:
    """Reads one text from left to right: at each place the first rule that fits."""

    def __init__(self, text: str, emoticons: Mapping[str, str]) -> None:
        self._text = "".join(c for c in text if not _within(c, _DROPPED))
        self._emoticons = emoticons
        self._sizes = sorted({len(emoticon) for emoticon in emoticons}, reverse=True)
        self._at = 0

    def tokens(self) -> Iterator[str]:
        while self._at < len(self._text):
            token = self._next()
            if token:
                yield token

    def _next(self) -> str:
        """Return the token at this place, "" if there is none, and go on behind it."""
        here = self._text[self._at]
        if _is_letter(here):
            return self._address() or self._word()
        if here in _DIGITS:
            self._run(_DIGITS)
            return "<number>"
        if here == "@" and self._peek(1) in _NAME:
            self._at += 1
            self._run(_NAME)
            return "<user>"
        if found := self._emoticon():
            return found
        if here in "!?":
            return here if self._run(here) == 1 else here + here
        self._at += 1
        return here if _within(here, _SYMBOLS) else ""

    def _address(self) -> str:
        ahead = self._text[self._at : self._at + 8].translate(_LOWERED)
        if not ahead.startswith(ADDRESSES):
            return ""
        while self._at < len(self._text) and self._text[self._at] not in _SPACES:
            self._at += 1
        return "<url>"

    def _word(self) -> str:
        """Read letters, and apostrophes between two of them, which are left out; of equal ones in a row, two stay."""
        letters = list[str]()
        while True:
            here = self._peek(0)
            if here and here in _APOSTROPHES and self._peek(1) and _is_letter(self._peek(1)):
                self._at += 1
                here = self._peek(0)
            if not here or not _is_letter(here):
                break
            letter = here.translate(_LOWERED)
            if letters[-2:] != [letter, letter]:
                letters.append(letter)
            self._at += 1
        return "".join(letters[:MAX_WORD])

    def _emoticon(self) -> str:
        for size in self._sizes:
            candidate = self._text[self._at : self._at + size]
            if candidate in self._emoticons:
                after = self._peek(size)
                if candidate[-1] in _NAME and after in _NAME:
                    continue  # ":Dude" begins no smile
                self._at += size
                return self._emoticons[candidate]
        return ""

    def _run(self, of: "frozenset[str] | str") -> int:
        start = self._at
        while self._peek(0) and self._peek(0) in of:
            self._at += 1
        return self._at - start

    def _peek(self, ahead: int) -> str:
        place = self._at + ahead
        return self._text[place] if place < len(self._text) else ""
