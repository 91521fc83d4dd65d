import json
from dataclasses import replace
from typing import Any

import pytest

from scanlab.contract.machine import this_machine
from scanlab.report.breakdown import (
    DtypeAccuracy,
    ModelBreakdown,
    OpTime,
    breakdown_bars,
    dtype_table,
    load_breakdowns,
    op_table,
    save_breakdown,
)

OPS = (
    OpTime("linear", "rows=197,in_features=192,out_features=768", 24, 12.0, 0.0, 9.0),
    OpTime("linear", "rows=197,in_features=192,out_features=768,dtype=bfloat16", 24, 0.0, 3.0, 1.5),
    OpTime("selective_scan", "batch=1,dim=384,length=197", 24, 9.0, 8.0, 6.0),
)
DTYPES = (
    DtypeAccuracy("float32", 2e-6, 1.0, 1.0, 25.0),
    DtypeAccuracy("bfloat16", 2e-2, 0.98, None, None, "a logit is off"),
)


@pytest.fixture
def breakdown():
    return ModelBreakdown("model=vim-tiny,batch=1,size=224", this_machine(), 25.0, 15.0, "why", OPS, DTYPES)


def test_a_breakdown_is_read_back_as_written(breakdown, tmp_path):
    save_breakdown(breakdown, tmp_path)
    assert load_breakdowns(tmp_path, this_machine()) == ([breakdown], [])


@pytest.mark.parametrize("changes", [None, {"why": 3}, {"before_ms": 0.0}, {"after_ms": "1"}, {"ops": [{}]}])
def test_what_is_no_breakdown_is_a_notice(breakdown, tmp_path, changes):
    path = save_breakdown(breakdown, tmp_path)
    odd = "[1, 2" if changes is None else json.dumps(json.loads(path.read_text()) | changes)
    path.with_name("other.json").write_text(odd)
    found, notices = load_breakdowns(tmp_path, this_machine())
    assert found == [breakdown]
    assert "other.json" in notices[0]


def test_tables_leave_out_what_a_dtype_does_not_pose(breakdown):
    ops = op_table(breakdown)
    assert list(ops["before"]) == ["12.0 ms", "", "9.00 ms"]
    assert list(ops["after"]) == ["", "3.00 ms", "8.00 ms"]
    assert list(dtype_table(breakdown)["time"]) == ["25.0 ms", "?"]
    assert list(dtype_table(breakdown)["left out"]) == ["", "a logit is off"]


def test_bars_add_up_to_the_whole_model(breakdown):
    axes: Any
    (axes,) = breakdown_bars(breakdown, "caption").axes
    ends: dict[int, float] = {}
    for bar in axes.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0.0), bar.get_x() + bar.get_width())
    assert ends == pytest.approx({0: 25.0, 1: 15.0, 2: 7.5})


def test_the_products_alone_have_a_bar_of_their_own(breakdown):
    (axes,) = breakdown_bars(replace(breakdown, products_ms=12.5), "caption").axes
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "products by torch"
    bars: list[Any] = list(axes.patches)
    widths = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in bars}
    assert widths[3] == pytest.approx(12.5)
