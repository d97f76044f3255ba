"""Data sets of texts: recipes read their owners' forms, repeats are left out, programs' tokenizers make the numbers."""

import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flsys_ray.data import synthetic, synthetic_texts
from flsys_ray.data.build import build, synthesize, synthesize_texts
from flsys_ray.data.catalog import default_text_dataset, list_datasets
from flsys_ray.data.dataset import TextDataset, open_dataset
from flsys_ray.data.leaks import check_no_leak
from flsys_ray.data.schema import file_sha256, write_tables
from flsys_ray.data.splits import held_out_part, split_users
from flsys_ray.data.synthetic_texts import Plan
from flsys_ray.data.texts import POSTS, by_user, without_repeats
from flsys_ray.device.collector import ReplaySource
from flsys_ray.errors import DataInvalid, DataLeak, InvalidInput
from flsys_ray.tokenizer import Tokenizer

SMALL = Plan(users=8, texts=10)
BOTH = ("negative", "positive")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """No test reads or writes the user's folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FLSYS_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path


def posts(*rows):
    """A table of posts: (user, text), one a second, all negative."""
    return pa.table(
        [[u for u, _ in rows], [float(i) for i in range(len(rows))], ["negative"] * len(rows), [t for _, t in rows]],
        schema=POSTS,
    )


# Owners' files ------------------------------------------------------------------------------------------------------

AIRLINE_HEAD = (
    "tweet_id,airline_sentiment,airline_sentiment_confidence,negativereason,negativereason_confidence,airline,"
    "airline_sentiment_gold,name,negativereason_gold,retweet_count,text,tweet_coord,tweet_created,tweet_location,"
    "user_timezone\n"
)


def airline_row(name, sentiment, text, created):
    quoted = text.replace('"', '""')
    return f'57,{sentiment},1.0,,,United,,{name},,0,"{quoted}",,{created},,Quito\n'


def airline(folder, *, as_zip=False):
    rows = [
        airline_row("ann", "negative", '@united worst "flight"\never &amp; so late', "2015-02-24 11:35:52 -0800"),
        airline_row("ann", "positive", "@united thanks, café!", "2015-02-24 10:00:00 -0800"),
        airline_row("ann", "neutral", "@united which gate?", "2015-02-24 12:00:00 -0800"),
        airline_row("ann", "negative", "@united again late", "2015-02-24 13:00:00 -0800"),
        airline_row("bob", "negative", "@delta lost my bag", "2015-02-24 10:00:00 -0800"),
        airline_row("bob", "negative", "@delta still lost", "2015-02-24 11:00:00 -0800"),
    ]
    text = AIRLINE_HEAD + "".join(rows)
    if as_zip:
        with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
            archive.writestr("Tweets.csv", text)
    else:
        (folder / "Tweets.csv").write_text(text)


@pytest.mark.parametrize("as_zip", [False, True])
def test_tweets_to_airlines_as_kaggle_offers_them(folders, as_zip):
    airline(folders, as_zip=as_zip)
    info = build("airline_tweets", from_folder=folders)
    data = open_dataset("airline_tweets")
    assert isinstance(data, TextDataset)
    assert (info.examples, info.min_texts, info.classes, info.source) == (3, 3, BOTH, "real")
    [user] = data.users
    assert "ann" not in user
    assert data.texts(user) == (
        "@united thanks, café!",
        '@united worst "flight"\never & so late',
        "@united again late",
    )
    examples = data.examples(user)
    assert examples.y.tolist() == [1, 0, 0]
    assert examples.start_s.tolist() == [1424800800.0, 1424806552.0, 1424811600.0]  # 18:00 UTC on 24 February 2015
    assert (examples.end_s == examples.start_s).all()
    assert build("airline_tweets", from_folder=folders, min_texts=2).examples == 5


def sentiment140(folder, users=3, tweets=2):
    lines = []
    for user in range(users):
        for number in range(tweets + user):
            label, mood = ("0", "sad") if number % 2 else ("4", "yay")
            text = f"{mood} {'abcdef'[number]} of {'uvw'[user]} é"
            date = f"Mon Apr 06 22:{user:02d}:{number:02d} PDT 2009"
            lines.append(",".join(f'"{value}"' for value in (label, number, date, "NO_QUERY", f"name{user}", text)))
    body = "\n".join(lines).encode("latin-1")
    with zipfile.ZipFile(folder / "trainingandtestdata.zip", "w") as archive:
        archive.writestr("training.1600000.processed.noemoticon.csv", body)
        archive.writestr("testdata.manual.2009.06.14.csv", b'"2","3","x"\n')


def test_sentiment140_as_stanford_offers_it(folders):
    sentiment140(folders)
    with pytest.raises(DataInvalid, match="no labelled texts"):
        build("sentiment140", from_folder=folders)
    info = build("sentiment140", from_folder=folders, min_texts=3)
    assert sorted(sum(of_user.values()) for of_user in info.counts.values()) == [3, 4]
    data = open_dataset("sentiment140")
    most = max(data.users, key=data.count)
    assert data.texts(most)[1] == "sad b of w é"
    assert data.examples(most).y.tolist() == [1, 0, 1, 0]
    assert data.examples(most).start_s[0] == 1239080520.0  # 22:02 PDT is 05:02 UTC on 7 April 2009


@pytest.mark.parametrize("name", ["airline_tweets", "sentiment140"])
def test_a_file_of_samples(folders, name):
    """Prepared once: polarity as a number, a null where neutral, dates with a time zone."""
    dates = pa.array([0, 10**6, 2 * 10**6, 3 * 10**6], pa.timestamp("us", "UTC"))
    columns = {"user": ["u1"] * 3 + ["u2"], "polarity": pa.array([1, 0, None, 0], pa.int8()), "date": dates}
    (folders / "data" / name).mkdir()
    table = pa.table({**columns, "text": ["so good", "so bad", "so what", "it broke"]})
    pq.write_table(table, folders / "data" / name / "tweets.parquet")
    assert build(name, from_folder=folders / "data", min_texts=1, out=folders / "out").examples == 3
    data = open_dataset(name, folders / "out")
    assert [data.texts(user) for user in data.users] == [("so good", "so bad"), ("it broke",)]
    assert data.examples("u1").y.tolist() == [1, 0]
    assert data.examples("u1").start_s.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("name", "file"), [("airline_tweets", "Tweets.csv"), ("sentiment140", "training")])
def test_a_folder_without_the_owners_files_is_refused_by_name(folders, name, file):
    with pytest.raises(DataInvalid, match=f"{name}: no {file}"):
        build(name, from_folder=folders)


def test_a_damaged_date_is_refused_with_its_file(folders):
    (folders / "Tweets.csv").write_text(AIRLINE_HEAD + airline_row("ann", "negative", "late", "yesterday"))
    with pytest.raises(DataInvalid, match=r"Tweets\.csv: tweet_created"):
        build("airline_tweets", from_folder=folders)


def test_windows_have_no_texts_to_count(folders):
    (folders / "local").mkdir()
    with pytest.raises(InvalidInput, match="no texts to count"):
        build("motionsense", from_folder=folders / "local", min_texts=3)


# Repeats ------------------------------------------------------------------------------------------------------------


def test_what_was_said_before_is_left_out():
    kept, repeats = without_repeats(
        posts(
            ("ann", "Flight is late http://t.co/1"),
            ("bob", "flight is LATE http://t.co/2"),
            ("ann", "flight is late"),
            ("eve", "..."),
            ("eve", "flight is late http://t.co/3 :("),
        )
    )
    assert repeats == 1
    assert kept["user"].to_pylist() == ["ann", "ann", "eve"]


def test_the_leak_detector_finds_a_passed_on_text(folders):
    """Two users with one text: the form on disk allows it, a split by user with it is refused."""
    info = synthetic_texts.draft("leaky")
    write_tables(folders / "data" / "leaky", info, by_user(posts(("ann", "so late"), ("bob", "So LATE")), info))
    data = open_dataset("leaky")
    with pytest.raises(DataLeak, match="1 examples of train are in held out as well"):
        check_no_leak({"train": [data.examples("ann")], "held out": [data.examples("bob")]})


def test_real_forms_do_not_leak_when_they_are_split(folders):
    synthesize_texts(plan=SMALL)
    data = open_dataset("synthetic-texts")
    train, held_out = split_users(data.users, 0.25, seed=0)
    check_no_leak({"train": map(data.examples, train), "held out": map(data.examples, held_out)})
    own, own_held_out = held_out_part(data.examples(data.users[0]), 0.3, seed=0)
    check_no_leak({"train": [own], "held out": [own_held_out]}, users_may_repeat=True)
    assert len(own) + len(own_held_out) == data.count(data.users[0])


# The form -----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(folders):
    info = synthesize_texts(plan=SMALL)
    folder = folders / "data" / "synthetic-texts"
    described = json.loads((folder / "dataset.json").read_text())
    assert (described["form"], described["users"], described["source"]) == ("texts", 8, "synthetic")
    assert described["texts"] == info.examples == pq.ParquetFile(folder / "texts.parquet").metadata.num_rows
    assert described["sha256"] == file_sha256(folder / "texts.parquet")
    data = open_dataset("synthetic-texts")
    assert data.info == info
    examples = data.examples("synthetic-0001")
    assert (examples.x.dtype, examples.x.shape) == (np.int32, (data.count("synthetic-0001"), data.tokenizer.length))
    assert (np.diff(examples.start_s) > 0).all()
    assert len(data.texts("synthetic-0001")) == len(examples)


def test_a_program_reads_texts_with_its_own_tokenizer(folders):
    synthesize_texts(plan=SMALL)
    data = open_dataset("synthetic-texts")
    tokenizer = Tokenizer(buckets=50, length=6, pairs=False)
    fitted = data.fit(("positive",), tokenizer)
    user = next(user for user in fitted.users if fitted.count(user) > 1)
    texts = fitted.texts(user)
    assert len(texts) == fitted.count(user) < data.count(user)
    assert (fitted.examples(user).x == tokenizer.batch(texts)).all()
    assert set(fitted.examples(user).y) == {0}
    with pytest.raises(DataInvalid, match="holds texts, and the program has no tokenizer"):
        data.fit(BOTH, None)
    synthesize(plan=synthetic.Plan(users=1, minutes=1.0))
    with pytest.raises(DataInvalid, match="holds windows of a sensor"):
        open_dataset("synthetic-har").fit(("walking",), tokenizer)


def test_damaged_texts_are_refused(folders):
    synthesize_texts(plan=SMALL)
    folder = folders / "data" / "synthetic-texts"
    pq.write_table(pq.read_table(folder / "texts.parquet").drop_columns(["label"]), folder / "texts.parquet")
    with pytest.raises(DataInvalid, match="not the file that was described"):
        open_dataset("synthetic-texts")
    text = (folder / "dataset.json").read_text()
    sha256 = json.loads(text)["sha256"]
    (folder / "dataset.json").write_text(text.replace(sha256, file_sha256(folder / "texts.parquet")))
    with pytest.raises(DataInvalid, match="lacks label"):
        open_dataset("synthetic-texts")


def test_a_replay_holds_texts_out_by_what_they_say(folders):
    """A text lasts no time: the phone's held-out part goes by content, so that a repeated text is on one side."""
    synthesize_texts(plan=SMALL)
    data = open_dataset("synthetic-texts")
    examples = ReplaySource(data, "synthetic-0001").due(0, 0.0)
    assert len(examples) == data.count("synthetic-0001")
    assert all(example.start_s is None for example in examples)


# The synthetic source -----------------------------------------------------------------------------------------------


def test_the_synthetic_source_needs_no_file_and_is_the_last_resort(folders, monkeypatch):
    monkeypatch.setattr(synthetic_texts, "Plan", lambda: SMALL)
    data = default_text_dataset()
    assert (data.name, data.source, len(data.users)) == ("synthetic-texts", "synthetic", 8)
    assert "SYNTHETIC" in data.title
    entries = {entry.name: entry for entry in list_datasets()}
    assert (entries["synthetic-texts"].state, entries["synthetic-texts"].form) == ("made at need", "texts")
    airline(folders)
    build("airline_tweets", from_folder=folders)
    entry = {entry.name: entry for entry in list_datasets()}["airline_tweets"]
    assert (entry.state, entry.texts, entry.windows) == ("ready", 3, None)
    assert default_text_dataset().name == "airline_tweets"


def test_same_seed_same_bytes(folders):
    for out in ("one", "two"):
        synthesize_texts(folders / out, SMALL)
    files = [folders / out / "synthetic-texts" / "texts.parquet" for out in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    synthesize_texts(folders / "one", Plan(users=8, texts=10, seed=1))
    assert files[0].read_bytes() != files[1].read_bytes()


def test_people_are_different_and_words_are_shared(folders):
    synthesize_texts(plan=Plan(users=40, texts=20))
    data = open_dataset("synthetic-texts")
    shares = np.array([data.examples(user).y.mean() for user in data.users])
    assert shares.std() > 0.2  # twenty coins each would show 0.11
    own = {word for user in data.users for word in synthetic_texts.writer(user, 0).words["positive"][-2:]}
    assert len(own) > 60
    with pytest.raises(DataInvalid, match="positive"):
        Plan(users=0)
