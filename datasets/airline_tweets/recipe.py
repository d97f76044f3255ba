"""Twitter US Airline Sentiment: hand-labelled tweets to airlines, from the owner's CSV file."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from flsys_ray.data.archive import members, parsed_csv
from flsys_ray.data.texts import POSTS, TextRecipe, read_polarities, seconds
from flsys_ray.errors import DataInvalid

COLUMNS = {name: pa.string() for name in ("airline_sentiment", "name", "text", "tweet_created")}


def read_owner(folder: Path) -> pa.Table:
    """Read `Tweets.csv`. A screen name becomes a hash; `tweet_created` says its offset from UTC."""
    found = [parsed_csv(m, COLUMNS, header=True, multiline=True) for m in members(folder, r"Tweets\.csv")]
    if not found:
        raise DataInvalid(
            "airline_tweets: no Tweets.csv here, nor in a zip file; Kaggle asks for a login, so fetch it by hand "
            "and say where it is with --from"
        )
    table = found[0]
    try:
        created = pc.strptime(table["tweet_created"], format="%Y-%m-%d %H:%M:%S %z", unit="s")
    except pa.ArrowInvalid as problem:
        raise DataInvalid(f"Tweets.csv: tweet_created: {problem}") from problem
    users = pa.array([pseudonym(name) for name in table["name"].to_pylist()])
    return pa.table([users, seconds(created), table["airline_sentiment"], table["text"]], schema=POSTS)


def pseudonym(name: str) -> str:
    """Return a short hash of a screen name."""
    return "u" + hashlib.blake2b(name.encode(), digest_size=6).hexdigest()


RECIPE = TextRecipe(
    title="Twitter US Airline Sentiment (hand-labelled tweets, users with 3 or more polar ones)",
    home="https://www.kaggle.com/datasets/crowdflower/twitter-airline-sentiment",
    licence="CC BY-NC-SA 4.0 (Kaggle's page); the texts are their authors'",
    citation="CrowdFlower (Figure Eight), Data for Everyone: Twitter US Airline Sentiment, 2015",
    version=1,
    classes={"negative": "negative", "positive": "positive"},
    samples_file="tweets.parquet",
    downloads=(),
    read_owner=read_owner,
    read_samples=read_polarities,
    min_texts=3,
)
