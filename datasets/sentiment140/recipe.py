"""Sentiment140: 1.6 million tweets, labelled by the emoticons that they had, from the owner's CSV file."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from flsys_ray.data.archive import members, parsed_csv
from flsys_ray.data.fetch import Download
from flsys_ray.data.texts import POSTS, TextRecipe, read_polarities, seconds
from flsys_ray.errors import DataInvalid

FILE = r"training\.1600000\.processed\.noemoticon\.csv"
COLUMNS = {name: pa.string() for name in ("polarity", "id", "date", "query", "user", "text")}
PDT_S = 7 * 3600.0


def read_owner(folder: Path) -> pa.Table:
    """Read the training file: Latin-1, no header, dates as `Mon Apr 06 22:19:45 PDT 2009`. Names become hashes."""
    found = [parsed_csv(m, COLUMNS, header=False, encoding="latin1") for m in members(folder, FILE)]
    if not found:
        raise DataInvalid("sentiment140: no training.1600000.processed.noemoticon.csv here, nor in a zip file")
    table = found[0]
    try:
        local = pc.strptime(table["date"], format="%a %b %d %H:%M:%S PDT %Y", unit="s")
    except pa.ArrowInvalid as problem:
        raise DataInvalid(f"training.1600000.processed.noemoticon.csv: date: {problem}") from problem
    names = table["user"].dictionary_encode().combine_chunks()
    pseudonyms = pa.array([pseudonym(name) for name in names.dictionary.to_pylist()])
    created_s = pc.add(seconds(local), PDT_S)
    return pa.table([pseudonyms.take(names.indices), created_s, table["polarity"], table["text"]], schema=POSTS)


def read_samples(path: Path) -> pa.Table:
    """Read a file of samples, and name its labels as the owner does."""
    table = read_polarities(path)
    owners = pa.array(["0", "4"]).take(pc.index_in(table["label"], pa.array(["negative", "positive"])).combine_chunks())
    return table.set_column(2, "label", owners)


def pseudonym(name: str) -> str:
    """Return a short hash of a screen name."""
    return "u" + hashlib.blake2b(name.encode(), digest_size=6).hexdigest()


RECIPE = TextRecipe(
    title="Sentiment140 (tweets labelled by their emoticons, users with many)",
    home="https://help.sentiment140.com/for-students",
    licence="none stated by the owner; offered to students and researchers; the texts are their authors'",
    citation="Go, Bhayani, Huang: Twitter Sentiment Classification using Distant Supervision. CS224N, Stanford, 2009",
    version=1,
    classes={"0": "negative", "4": "positive"},
    samples_file="tweets.parquet",
    downloads=(Download("https://cs.stanford.edu/people/alecmgo/trainingandtestdata.zip", "trainingandtestdata.zip"),),
    read_owner=read_owner,
    read_samples=read_samples,
    min_texts=70,
)
