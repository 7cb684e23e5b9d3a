"""What is made of a trace of a GPU: kernels by their time, and when none is at work."""

from experiments.benchmarks import kernels

MS = 1e6
# Two streams: b and c overlap, e lies within d.
EVENTS = [
    (3 * MS, 5 * MS, "c"),
    (0, 1 * MS, "a"),
    (2 * MS, 4 * MS, "b"),
    (5 * MS, 9 * MS, "d"),
    (6 * MS, 7 * MS, "e"),
    (9.5 * MS, 10 * MS, "a"),
]


def test_kernels_are_listed_by_their_time():
    assert kernels.kernels(EVENTS) == [
        {"kernel": "d", "ms": 4.0, "count": 1},
        {"kernel": "c", "ms": 2.0, "count": 1},
        {"kernel": "b", "ms": 2.0, "count": 1},
        {"kernel": "a", "ms": 1.5, "count": 2},
        {"kernel": "e", "ms": 1.0, "count": 1},
    ]


def test_gaps_are_where_no_stream_has_a_kernel():
    assert kernels.idle(EVENTS) == {
        "busy_ms": 8.5,
        "idle_ms": 1.5,
        "gaps": [
            {"ms": 1.0, "at_ms": 1.0, "after": "a", "before": "b"},
            {"ms": 0.5, "at_ms": 9.0, "after": "d", "before": "a"},
        ],
    }
