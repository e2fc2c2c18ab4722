"""The line of requests: first come, first served, with limits."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from privtensors.deploy.turns import Turns
from privtensors.errors import PartyBusy


def test_turns_come_in_order() -> None:
    turns = Turns(1, 8)
    with ExitStack() as first, ExitStack() as rest:
        head = first.enter_context(turns.turn())
        others = [rest.enter_context(turns.turn()) for _ in range(3)]
        assert head.ready() and [o.ready() for o in others] == [False] * 3
        assert (turns.running, turns.length) == (1, 3)
        first.close()
        assert [o.ready() for o in others] == [True, False, False]
    assert (turns.running, turns.length) == (0, 0)


def test_who_gives_up_in_the_line_holds_nobody() -> None:
    turns = Turns(1, 8)
    with ExitStack() as head, ExitStack() as second:
        head.enter_context(turns.turn())
        second.enter_context(turns.turn())
        with turns.turn() as third:
            second.close()
            head.close()
            assert third.ready()


def test_a_full_line_is_busy() -> None:
    turns = Turns(1, 1)
    with turns.turn(), turns.turn():
        with pytest.raises(PartyBusy, match="1 requests wait"), turns.turn():
            raise AssertionError("no room for this one")
        assert turns.length == 1
    with Turns(1, 0).turn() as alone:
        assert alone.ready()


def test_several_run_at_a_time_and_none_is_lost() -> None:
    turns, done, lock = Turns(2, 100), [], threading.Lock()
    most = 0

    def work(name: int) -> None:
        nonlocal most
        for _ in range(20):
            with turns.turn() as place:
                assert place.ready(10)
                with lock:
                    most = max(most, turns.running)
                    done.append(name)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 100 and most <= 2 and turns.running == turns.length == 0
