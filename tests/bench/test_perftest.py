"""What perftest prints, as numbers."""

from __future__ import annotations

import pytest

from rfaas.bench.perftest import _row

HEADING = " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]"
LINE = "-" * 80


def test_the_line_after_its_heading() -> None:
    """As of perftest 6.06."""
    text = f"{LINE}\n RDMA_Write Latency Test\n{LINE}\n{HEADING}\n 64      500          24.16"
    assert _row(f"{text}   12162.18      47.12    \t 506.32  \n{LINE}\n") == [
        *(64.0, 500.0, 24.16),
        *(12162.18, 47.12, 506.32),
    ]


@pytest.mark.parametrize(
    "text", ["", "no heading\n64 500\n", HEADING, f"{HEADING}\n 64 500 inf 1.0 inf inf\n"]
)
def test_nothing_to_be_had(text: str) -> None:
    assert _row(text) is None
