"""From posts, as their owner has them, to a data set of texts: what a recipe for texts declares.

A text that says the same as an earlier one is left out, whoever wrote it: passed-on posts are one text under many
names, and would be in the training part and in the test part of a split by user. "The same" means: the same tokens, so
that another link, name or capital letter makes no new text. `dataset.json` says how many these were.
"""

import hashlib
import html
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flsys_ray.data.fetch import Download
from flsys_ray.data.schema import TextsInfo, write_tables
from flsys_ray.errors import DataInvalid
from flsys_ray.tokenizer import Tokenizer

POSTS = pa.schema([("user", pa.string()), ("created_s", pa.float64()), ("label", pa.string()), ("text", pa.string())])


@dataclass(frozen=True)
class TextRecipe:
    """One data set of texts: its card, where its owner keeps it, and how it is read.

    Attributes:
        title, home, licence, citation: of the card.
        version: raise it whenever the same source would give other texts.
        classes: our class name for the owner's label; posts with another label, or none, are left out.
        samples_file: a Parquet file of posts, as one prepares it once from the owner's files.
        downloads: the owner's files.
        read_owner: reads the owner's files in a folder (zipped or not) to a table of `POSTS`.
        read_samples: reads the file of samples to the same.
        min_texts: users with fewer are left out, unless whoever builds the data set says another number.
    """

    title: str
    home: str
    licence: str
    citation: str
    version: int
    classes: Mapping[str, str]
    samples_file: str
    downloads: tuple[Download, ...]
    read_owner: Callable[[Path], pa.Table]
    read_samples: Callable[[Path], pa.Table]
    min_texts: int = 1

    def convert(self, name: str, source: Path, target: Path, min_texts: int | None = None) -> TextsInfo:
        """Read what is in `source`, and write the data set into the folder `target`."""
        samples = source / self.samples_file
        posts = self.read_samples(samples) if samples.is_file() else self.read_owner(source)
        least = self.min_texts if min_texts is None else min_texts
        kept, repeats = without_repeats(_of_busy_users(self._labelled(posts), least))
        draft = TextsInfo(
            name=name,
            title=self.title,
            source="real",
            licence=self.licence,
            citation=self.citation,
            home=self.home,
            recipe_version=self.version,
            min_texts=least,
            repeats=repeats,
        )
        return write_tables(target, draft, by_user(_of_busy_users(kept, least), draft))

    def _labelled(self, posts: pa.Table) -> pa.Table:
        if missing := [c for c in POSTS.names if c not in posts.column_names]:
            raise DataInvalid(f"posts lack the columns {', '.join(missing)}")
        owners, ours = pa.array(list(self.classes)), pa.array(list(self.classes.values()))
        label = ours.take(pc.index_in(posts["label"], value_set=owners).combine_chunks())
        posts = posts.select(POSTS.names).set_column(2, "label", label)
        return posts.filter(pc.is_valid(posts["label"]))


def without_repeats(posts: pa.Table) -> tuple[pa.Table, int]:
    """Return posts whose words no earlier one has, their HTML entities resolved, and how many others there were.

    Posts without any word are left out too, and not counted.
    """
    posts = posts.sort_by([("created_s", "ascending"), ("user", "ascending"), ("text", "ascending")])
    texts = [html.unescape(text) for text in posts["text"].to_pylist()]
    tokenizer, seen, keep, repeats = Tokenizer(), set[bytes](), list[int](), 0
    for row, text in enumerate(texts):
        words = tokenizer.words(text)
        content = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        if content in seen:
            repeats += 1
        elif words:
            seen.add(content)
            keep.append(row)
    posts = posts.set_column(posts.column_names.index("text"), "text", pa.array(texts, pa.string()))
    return posts.take(pa.array(keep, pa.int64())), repeats


def by_user(posts: pa.Table, draft: TextsInfo) -> Iterator[tuple[str, pa.Table]]:
    """Cut a table of posts into one of each user, in the schema of the data set."""
    posts = posts.sort_by([("user", "ascending"), ("created_s", "ascending")]).combine_chunks()
    if posts.num_rows:
        posts = posts.select(draft.schema().names).cast(draft.schema())
        users = np.array(posts["user"].to_pylist(), dtype=np.object_)
        starts = [0, *(np.flatnonzero(users[1:] != users[:-1]) + 1).tolist(), len(users)]
        for start, end in pairwise(starts):
            yield str(users[start]), posts.slice(start, end - start)


def read_polarities(path: Path) -> pa.Table:
    """Read a file of samples with columns user, polarity (1, 0 or none), date and text to a table of `POSTS`."""
    present = pq.read_schema(path).names
    if missing := [c for c in ("user", "polarity", "date", "text") if c not in present]:
        raise DataInvalid(f"{path.name} lacks the columns {', '.join(missing)}")
    table = pq.read_table(path, columns=["user", "polarity", "date", "text"])
    names = pc.index_in(table["polarity"].cast(pa.int64()), value_set=pa.array([0, 1]))
    label = pa.array(["negative", "positive"]).take(names.combine_chunks())
    return pa.table([table["user"], seconds(table["date"]), label, table["text"]], schema=POSTS)


def seconds(instants: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return instants of any unit as float64 UTC seconds."""
    microseconds = instants.cast(pa.timestamp("us", instants.type.tz)).cast(pa.int64()).cast(pa.float64())
    return pc.divide(microseconds, 1e6)


def _of_busy_users(posts: pa.Table, least: int) -> pa.Table:
    counted = posts.group_by("user").aggregate([("text", "count")])
    busy = counted.filter(pc.greater_equal(counted["text_count"], least))["user"]
    return posts.filter(pc.is_in(posts["user"], value_set=busy.combine_chunks()))
