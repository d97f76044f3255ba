"""A made-up source of short opinions, for where no real texts are at hand. SYNTHETIC: nothing about people follows.

Each user has an own mood, vocabulary and habits, so that the data are naturally non-IID:

- *mood*: the share of positive texts, from a beta distribution; many users have hardly any;
- *vocabulary*: a dozen of the words of each polarity, and two invented ones of their own that nobody else knows;
- *topics*: two of them, with their nouns;
- *habits*: smileys, exclamation marks, stretched words, mentions, links, hashtags.

Some opinions are negated ("not great"), some hold a word of the other polarity in a subordinate clause, and some labels
are wrong, so that no model becomes perfect. All numbers are ours, and estimates of nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from flsys_ray.core.rng import generator
from flsys_ray.data.schema import TextsInfo, write_tables
from flsys_ray.data.synthetic import user_names
from flsys_ray.data.texts import POSTS, by_user, without_repeats
from flsys_ray.errors import DataInvalid

NAME = "synthetic-texts"
VERSION = 1
EPOCH_S = 1_700_000_000.0
EVERY_S = 5_000.0
NEGATED, CONTRARY, MISLABELLED = 0.12, 0.15, 0.03

_POSITIVE = (
    "great good excellent lovely brilliant happy pleasant superb friendly helpful quick smooth perfect clean "
    "comfortable fresh tasty warm kind bright charming reliable generous elegant cheerful delightful impressive "
    "polite cosy amazing awesome wonderful fantastic beautiful enjoyable thoughtful"
)
_NEGATIVE = (
    "bad awful terrible poor horrible sad rude slow broken dirty late cold noisy useless boring ugly stale "
    "expensive cramped sticky dull lost angry careless confusing disappointing dreadful faulty filthy greedy "
    "painful shabby unfair weak wrong miserable"
)
WORDS = {"positive": _POSITIVE.split(), "negative": _NEGATIVE.split()}
TOPICS = {
    "travel": ("flight", "train", "seat", "crew", "luggage", "ticket", "airport"),
    "food": ("pizza", "coffee", "dinner", "waiter", "menu", "soup", "dessert"),
    "phones": ("screen", "battery", "camera", "update", "app", "keyboard", "charger"),
    "films": ("movie", "actor", "plot", "ending", "music", "theatre", "trailer"),
    "sport": ("match", "team", "coach", "referee", "goal", "season", "stadium"),
}
FRAMES = (
    "the {noun} was {word}",
    "what a {word} {noun}",
    "{word} {noun} today",
    "my {noun} is so {word}",
    "just had a {word} {noun} again",
    "honestly {word} {noun} and {other}",
)
_SYLLABLES = ("ba", "ke", "lo", "mi", "nu", "ro", "sa", "ti", "vo", "za", "dri", "fle", "gru", "pla", "sko")


@dataclass(frozen=True)
class Plan:
    """How much to make up.

    Attributes:
        users: how many people.
        texts: of each of them, before repeats are left out.
        seed: the same seed gives the same data.
    """

    users: int = 200
    texts: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if self.users < 1 or self.texts < 1:
            raise DataInvalid(f"synthetic texts: users and texts must be positive, not {self}")


@dataclass(frozen=True)
class Writer:
    """A made-up user: share of positive texts, words of each polarity, nouns, and how often each habit shows."""

    name: str
    mood: float
    words: dict[str, list[str]]
    nouns: list[str]
    habits: dict[str, float]


def writer(user: str, seed: int) -> Writer:
    """Make up a user; the same name and seed are the same person."""
    rng = generator(seed, "synthetic-writer", 0, user)
    words = {}
    for polarity, known in WORDS.items():
        popularity = 1.0 / np.arange(1, len(known) + 1)
        chosen = rng.choice(known, 12, replace=False, p=popularity / popularity.sum())
        own = ["".join(rng.choice(_SYLLABLES, 3)) for _ in range(2)]
        words[polarity] = [*map(str, chosen), *own]
    topics = rng.choice(list(TOPICS), 2, replace=False)
    habits = {name: float(rng.beta(1.0, 3.0)) for name in ("smiley", "shout", "stretch", "mention", "link", "tag")}
    return Writer(user, float(rng.beta(0.8, 1.2)), words, [n for t in topics for n in TOPICS[str(t)]], habits)


def text_of(who: Writer, polarity: str, rng: np.random.Generator) -> str:
    """Make up one text of a polarity."""
    opposite = "negative" if polarity == "positive" else "positive"
    negated = rng.random() < NEGATED
    word = str(rng.choice(who.words[opposite if negated else polarity]))
    if rng.random() < who.habits["stretch"]:
        word = word[:2] + word[1] * 3 + word[2:]
    noun, other = (str(n) for n in rng.choice(who.nouns, 2, replace=False))
    said = f"not {word}" if negated else word
    text = str(rng.choice(FRAMES)).format(noun=noun, word=said, other=other)
    if rng.random() < CONTRARY:
        text += f", though the {other} was {rng.choice(who.words[opposite])}"
    if rng.random() < who.habits["shout"]:
        text += "!!"
    if rng.random() < who.habits["smiley"]:
        text += " :)" if polarity == "positive" else " :("
    if rng.random() < who.habits["mention"]:
        text = f"@{noun}_{rng.integers(100)} {text}"
    if rng.random() < who.habits["tag"]:
        text += f" #{other}"
    return f"{text} https://x.test/{rng.integers(10**6)}" if rng.random() < who.habits["link"] else text


def write(target: Path, plan: Plan, name: str = NAME) -> TextsInfo:
    """Write the data set into the folder `target`."""
    rows = [row for user in user_names(plan.users) for row in _rows(writer(user, plan.seed), plan)]
    posts = pa.Table.from_pylist(rows, schema=POSTS)
    kept, _ = without_repeats(posts)
    info = draft(name)
    return write_tables(target, info, by_user(kept, info))


def draft(name: str = NAME) -> TextsInfo:
    """Return the card of synthetic texts."""
    return TextsInfo(
        name=name,
        title="SYNTHETIC texts (made up by a formula; no real person)",
        source="synthetic",
        licence="same as this software",
        citation="none: figures on these data say nothing about real people",
        home="flsys_ray/data/synthetic_texts.py",
        recipe_version=VERSION,
        min_texts=1,
    )


def _rows(who: Writer, plan: Plan) -> list[dict[str, object]]:
    rng = generator(plan.seed, "synthetic-texts", 0, who.name)
    rows: list[dict[str, object]] = []
    for number in range(plan.texts):
        positive = bool(rng.random() < who.mood)
        text = text_of(who, "positive" if positive else "negative", rng)
        said = positive ^ bool(rng.random() < MISLABELLED)
        created_s = EPOCH_S + number * EVERY_S + float(np.round(rng.uniform(0, EVERY_S), 3))
        label = "positive" if said else "negative"
        rows.append({"user": who.name, "created_s": created_s, "label": label, "text": text})
    return rows
