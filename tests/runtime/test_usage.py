"""What a recording notes: every scan of a dispatcher while it runs, by problem, the longest first."""

from __future__ import annotations

import threading

from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.runtime.dispatch import Dispatcher
from scanlab.runtime.usage import Recording, Usage, recording

SMALL = ScanProblem(batch=1, dim=4, length=5, state=3)
LARGE = SMALL.replace(length=50)


def test_every_scan_in_the_block_is_noted_by_problem():
    serve = Dispatcher("reference:threads=1")
    serve(*make_inputs(SMALL))
    with recording() as outer:
        serve(*make_inputs(SMALL))
        with recording() as inner:
            for _ in range(2):
                serve(*make_inputs(LARGE))
    serve(*make_inputs(SMALL))
    assert {problem: usage.calls for problem, usage in outer.usage.items()} == {SMALL: 1, LARGE: 2}
    assert list(inner.usage) == [LARGE]
    assert inner.usage[LARGE].seconds > 0


def test_the_one_that_takes_longest_stands_first():
    made = Recording()
    made.add(SMALL, 0.1)
    made.add(LARGE, 0.3)
    made.add(SMALL, 0.1)
    assert made.usage == {LARGE: Usage(1, 0.3), SMALL: Usage(2, 0.2)}
    assert list(made.usage) == [LARGE, SMALL]


def test_scans_of_other_threads_are_noted_too():
    serve = Dispatcher("reference:threads=1")
    with recording() as made:
        threads = [threading.Thread(target=serve, args=make_inputs(SMALL)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert made.usage[SMALL].calls == 4
