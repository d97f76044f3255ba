"""Processes that train chains: the same bits as in one process, and errors that reach the parent."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from test_simulation_chains import CLASSES, LOCAL, pooled
from test_simulation_trainers import group_of, spec_of

from flsys_ray.simulation.crew import Crew, WorkerLost
from flsys_ray.simulation.desk import Desk
from flsys_ray.simulation.executors import InlineExecutor
from flsys_ray.simulation.fast_trainer import make_fast_trainer
from flsys_ray.simulation.training import Group, Work, parts_of


@pytest.fixture(scope="module")
def spec():
    return spec_of(pooled, CLASSES, local=LOCAL, group_size=4)


def same(found, expected):
    for mine, theirs in ((found.delta, expected.delta), (found.loss, expected.loss), (found.steps, expected.steps)):
        assert mine.dtype == theirs.dtype
        assert mine.tobytes() == theirs.tobytes()


def test_processes_and_parts_give_the_bits_of_one_process(spec):
    trainer, executor = make_fast_trainer(spec), InlineExecutor({"m": spec}, 2)
    groups = [group_of(spec, sizes=(50, 8, 31, 20)), group_of(spec, sizes=(9, 41), corrected=True)]
    try:
        promises = [executor.train(group) for group in groups * 6]  # more than the workers take at once
        for promise, group in zip(promises, groups * 6, strict=True):
            same(promise.result(), trainer.train(group))
            assert promise.done()
    finally:
        executor.close()


def test_a_group_is_cut_into_even_parts_or_not_at_all(spec):
    group = group_of(spec, sizes=(10, 11, 12, 13, 14))
    assert [len(part.works) for part in parts_of(group, 2)] == [1, 2, 2]
    assert [part.works for part in parts_of(group, 0)] == [group.works]
    assert sum((part.works for part in parts_of(group, 3)), ()) == group.works


def test_a_worker_s_error_and_its_end_are_told(spec):
    crew, group = Crew(make_fast_trainer(spec).recipe(), 4, 1), group_of(spec)
    try:
        wrong = replace(group, works=(replace(group.works[0], rows=np.array([10**9])),))
        good = crew.train(group)
        with pytest.raises(IndexError):
            crew.train(wrong).result()
        assert good.result().delta.shape == (3, len(group.bases[0]))
        os.kill(crew._workers[0]._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerLost):
            crew.train(group).result()
        with pytest.raises(WorkerLost):
            crew.train(group).result()
    finally:
        crew.close()


class Recorded:
    """An executor that only writes down who is in a group."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []

    def train(self, group: Group) -> None:
        self.groups.append([work.assignment_id for work in group.works])


def test_full_groups_begin_at_once_where_a_round_wants_all():
    for at_once, expected in ((True, [["0", "1"], ["2", "3"]]), (False, [])):
        executor = Recorded()
        desk = Desk("m", executor, 2, at_once=at_once)  # type: ignore[arg-type]
        for i in range(5):
            desk.give(Work(str(i), 0, 0, np.arange(3), 0.1), np.zeros(2, np.float32), 9.0 - i)
        assert executor.groups == expected
