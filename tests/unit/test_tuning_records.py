"""What becomes of reports: figures, the best trial, the front, tables, pictures and the report."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.core.plan import parse_plan, parse_plan_yaml
from flsys_ray.errors import Conflict, DataInvalid, InvalidInput, NotFound
from flsys_ray.simulation.results import Row
from tuning.configurations import check, fixed_configurations
from tuning.figures import curve_of, mean_of, side_by_side
from tuning.plots import draw_all
from tuning.records import Record, best_of, front_of, ranked
from tuning.report import Findings, write_report
from tuning.stage import users_of
from tuning.study import claim, plan_text
from tuning.sweep import READY, find_sweep, parse_sweep
from tuning.tables import curve_table, trial_table, write_tables

SWEEP = parse_sweep(
    """
    data: synthetic-har
    builtin: har-wild
    rounds: 3
    seeds: [4, 5]
    target: 0.7
    trials: 5
    space:
      selection: {choice: [uniform, {name: power_of_choice, choice: 5}]}
      local.epochs: {randint: [1, 9]}
      local.learning_rate: {loguniform: [0.01, 1]}
    """
)


def row(number: int, version: int | None, accuracy: float | None, **more: Any) -> Row:
    costs = {"download_bytes": 100, "upload_bytes": 10, "device_s": 2.0, "wasted_device_s": 0.5, **more}
    kept = {"assigned": 1, "counted": 1, "late": 0, "given_back": 0, "num_examples": 1, "check_ins": 1}
    unknown = {"training_loss": None, "delta_norm": None, "mean_staleness": None}
    scores = {"accuracy": accuracy, "macro_f1": accuracy, "loss": None if accuracy is None else 1 - accuracy}
    times = {"opened_s": 10.0 * (number - 1), "closed_s": 10.0 * number}
    return Row(model="m", round=number, version=version, **kept, **unknown, **scores, **times, **costs)


def record(number: int, scores: list[float], bytes_: float = 1.0, virtual_s: float = 1.0, **more: Any) -> Record:
    """A trial whose last accuracies over seeds are these, with one report."""
    costs = {"rounds": 1.0, "virtual_s": virtual_s, "bytes": bytes_, "device_s": 1.0, "wasted_device_s": 0.0}
    empty = dict.fromkeys(("rounds_to_target", "virtual_s_to_target", "bytes_to_target", "device_s_to_target"))
    report = [
        {"seed": seed, "version": 3, "accuracy": score, "macro_f1": score, "loss": 0.1, **costs, **empty}
        for seed, score in zip(SWEEP.seeds, scores, strict=False)
    ]
    configuration = fixed_configurations(SWEEP)[number % 5]
    return Record(number, configuration, **{"status": "finished", "reports": [report], **more})


# Figures ---------------------------------------------------------------------------------------------------------


def test_figures_are_sums_up_to_the_version_and_to_the_first_that_reached_the_target():
    rows = [row(1, 1, 0.5), row(2, None, None), row(3, 2, 0.7), row(4, 3, 0.6), row(5, None, None)]
    curve = curve_of(rows, 9, "accuracy", 0.7)
    assert [(at["version"], at["rounds"], at["virtual_s"], at["bytes"]) for at in curve] == [
        (1, 1, 10, 110),
        (2, 3, 30, 330),
        (3, 4, 40, 440),
    ]
    assert [at["rounds_to_target"] for at in curve] == [None, 3, 3]
    last = {"seed": 9, "accuracy": 0.6, "device_s": 8, "wasted_device_s": 2, "bytes_to_target": 330}
    assert last.items() <= curve[-1].items()
    assert {"virtual_s_to_target": 30, "device_s_to_target": 6}.items() <= curve[-1].items()


def test_seeds_stand_side_by_side_and_one_that_ended_keeps_its_last():
    long, short = curve_of([row(1, 1, 0.5), row(2, 2, 0.6)], 1, "loss", 9), curve_of([row(1, 1, 0.2)], 2, "loss", 9)
    assert [[at["version"] for at in pair] for pair in side_by_side([long, short])] == [[1, 1], [2, 1]]
    assert side_by_side([long, []]) == []


def test_means_are_over_seeds_and_a_cost_to_target_needs_all_of_them():
    both = [curve_of([row(1, 1, score)], seed, "accuracy", 0.7)[0] for seed, score in ((1, 0.8), (2, 0.9))]
    mean = mean_of(both, "accuracy")
    assert mean["accuracy"] == pytest.approx(0.85)
    assert (mean["lowest"], mean["highest"], mean["reached"], mean["bytes_to_target"]) == (0.8, 0.9, 2, 110)
    one = [both[0], curve_of([row(1, 1, 0.1)], 2, "accuracy", 0.7)[0]]
    assert (mean_of(one, "accuracy")["reached"], mean_of(one, "accuracy")["bytes_to_target"]) == (1, None)


# Choice ----------------------------------------------------------------------------------------------------------


def test_the_best_finished_most_of_the_metric_then_fewest_bytes_then_first():
    records = [record(0, [0.5, 0.7]), record(1, [0.6, 0.6], 0.5), record(2, [0.6, 0.6], 0.5), record(3, [0.1, 0.2])]
    early = record(4, [0.9, 0.9], status="ended early")
    assert best_of([*records, early], "accuracy").number == 1
    assert [r.number for r in ranked([early, *records], "accuracy")] == [0, 1, 2, 3, 4]
    with pytest.raises(InvalidInput, match="no trial finished"):
        best_of([early], "accuracy")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(points):
    records = [record(i, [a / 10, a / 10], float(b), float(t)) for i, (a, b, t) in enumerate(points)]
    front = {r.number for r in front_of(records, "accuracy", ("bytes", "virtual_s"))}
    for i, (a, b, t) in enumerate(points):
        better = [p for p in points if p != (a, b, t) and p[0] >= a and p[1] <= b and p[2] <= t]
        assert (i in front) == (not better)


# Tables, pictures, report ----------------------------------------------------------------------------------------

ALL = [
    *(record(i, [0.5 + i / 10, 0.6 + i / 10], 5.0 - i, 1.0 + i) for i in range(3)),
    record(3, [0.3, 0.4], status="ended early"),
    Record(4, fixed_configurations(SWEEP)[4], "refused", [], problem="local.epochs: too many & <odd>"),
]


def test_tables_have_a_row_a_trial_and_a_row_a_version(tmp_path):
    write_tables(ALL, SWEEP, tmp_path)
    trials, curves = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("trials", "curves"))
    assert trials.equals(trial_table(ALL, SWEEP))
    assert curves.equals(curve_table(ALL))
    assert trials["status"].to_pylist() == ["finished"] * 3 + ["ended early", "refused"]
    assert trials["best"].to_pylist() == [False, False, True, False, False]
    assert trials["accuracy"].to_pylist() == pytest.approx([0.55, 0.65, 0.75, 0.35, None])
    assert trials["local.epochs"].to_pylist() == [c["local.epochs"] for c in fixed_configurations(SWEEP)]
    assert trials["selection"].to_pylist() == [c["selection"] for c in fixed_configurations(SWEEP)]
    assert curves.num_rows == 8
    assert not list(tmp_path.glob("*.part"))


def test_pictures_and_report_show_every_trial(tmp_path):
    pictures = draw_all(ALL, SWEEP, tmp_path)
    assert [picture.name for picture in pictures] == ["curves.svg", "parallel.svg", "pareto.svg"]
    users, test = {"training": 7, "validation": 2, "test": 3}, mean_of(ALL[0].reports[-1], "accuracy")
    found = Findings(SWEEP, ALL, users, test, "pacing: {a: '<b>'}\n")
    write_report(found, pictures, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert html.count("<svg") == 3
    assert html.count("<tr") == 1 + len(ALL)
    assert '0.550 <small class="faint">0.500 to 0.600</small></span>accuracy of the best plan on test users' in html
    assert "local.epochs: too many &amp; &lt;odd&gt;" in html
    assert "&lt;b&gt;" in html
    assert "$" not in html[html.index("<h1>") : html.index("<svg")]


def test_the_same_trials_draw_the_same_pictures(tmp_path):
    (tmp_path / "again").mkdir()
    one, two = draw_all(ALL, SWEEP, tmp_path), draw_all(ALL, SWEEP, tmp_path / "again")
    assert [picture.read_bytes() for picture in one] == [picture.read_bytes() for picture in two]


def test_the_best_plan_is_a_plan():
    plan = parse_plan({"local": {"epochs": 3}, "stopping": {"versions": 3}})
    text = plan_text(plan, SWEEP, ALL[2])
    assert parse_plan_yaml(text) == plan
    assert text.startswith("# flsys tune: har-wild on synthetic-har, trial 2: selection = ")


# Users, folders, files -------------------------------------------------------------------------------------------


@given(st.integers(3, 40), st.integers(0, 99), st.integers(0, 99))
def test_test_users_are_those_of_the_sweep_and_no_user_is_in_two_parts(count, sweep_seed, seed):
    users = [f"u{i}" for i in range(count)]
    split = users_of(users, sweep_seed, seed)
    assert sorted([*split.training, *split.validation, *split.test]) == sorted(users)
    assert split.test == users_of(users, sweep_seed, seed + 1).test
    assert all((split.training, split.validation, split.test))


def test_two_users_are_too_few():
    with pytest.raises(DataInvalid, match="2 users: training, validation and test need one each"):
        users_of(["a", "b"], 0, 0)


def test_a_folder_holds_one_sweep(tmp_path):
    claim(tmp_path / "new" / "folder", SWEEP)
    claim(tmp_path / "new" / "folder", SWEEP)
    with pytest.raises(Conflict, match="holds another sweep"):
        claim(tmp_path / "new" / "folder", SWEEP.model_copy(update={"rounds": 4}))


@pytest.mark.parametrize("file", sorted(READY.glob("*.yaml")), ids=lambda file: file.stem)
def test_ready_sweeps_are_found_by_name_and_make_plans(file: Path):
    assert find_sweep(file.stem) == file
    sweep = parse_sweep(file.read_text(), file.name)
    assert sweep.builtin is not None
    configurations = [] if sweep.search.name == "optuna" else fixed_configurations(sweep)
    check(sweep, configurations)


def test_an_unknown_sweep_lists_the_ready_ones():
    with pytest.raises(NotFound, match=r"no sweep 'nothing'.*har-selection"):
        find_sweep("nothing")
