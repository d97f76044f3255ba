"""The gate of an actor that leaves: nobody is inside when it closes, and nobody comes in afterwards."""

import threading

from cloud_fakes import Clock
from hypothesis import given
from hypothesis import strategies as st

from actors.gate import Gate


@given(steps=st.lists(st.sampled_from(["enter", "leave", "wait", "close"]), max_size=40))
def test_it_closes_only_when_nobody_is_inside_and_was_for_long_enough(steps):
    clock = Clock()
    gate, inside, last, closed = Gate(10.0, clock), 0, clock(), False
    for step in steps:
        if step == "wait":
            clock.advance(6.0)
        elif step == "enter":
            assert gate.enter() is not closed
            inside += not closed
        elif step == "leave" and inside:
            gate.leave()
            inside, last = inside - 1, clock()
        elif step == "close":
            closed = closed or (inside == 0 and clock() - last >= 10.0)
            assert gate.close_if_idle() is closed
        assert gate.idle_in_s() == max(0.0, last + 10.0 - clock())


def test_of_threads_that_come_while_it_closes_each_is_either_in_or_told():
    for _ in range(50):
        gate, barrier, told = Gate(0.0), threading.Barrier(5), []

        def come(gate=gate, barrier=barrier, told=told):
            barrier.wait()
            came_in = gate.enter()
            told.append((came_in, came_in and gate.close_if_idle()))

        threads = [threading.Thread(target=come) for _ in range(4)]
        for thread in threads:
            thread.start()
        barrier.wait()
        closed = gate.close_if_idle()
        for thread in threads:
            thread.join()
        assert not any(closed_on_me for _, closed_on_me in told)
        assert all(not came_in for came_in, _ in told) if closed else any(came_in for came_in, _ in told)
