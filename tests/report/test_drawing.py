"""Scales, ticks and labels of drawings, and that texts in them are escaped."""

import re
from itertools import pairwise

import pytest

from fedelta.report.drawing import lines, rows, svg
from fedelta.report.drawing.lines import WIDE, Frame, Line


def frame(**changes: object) -> Frame:
    return Frame("round", "score", lambda x: f"round {x:.0f}", lambda y: f"{y:.2f}", **changes)  # pyright: ignore


def a_line(key: str, *points: tuple[float, float]) -> Line:
    return Line(key, "k0", key, points, [(x, y - 1, y + 1) for x, y in points])


def test_ticks_are_written_exactly():
    ticks = svg.nice_ticks(1.0, 1.75)
    assert [svg.tick_text(t, ticks) for t in ticks] == ["1.0", "1.2", "1.4", "1.6", "1.8"]
    assert [svg.tick_text(t, [1.0, 1.25, 1.5, 1.75]) for t in (1.0, 1.75)] == ["1.00", "1.75"]
    assert svg.tick_text(-0.5, [-0.5, 0.0]) == "\u22120.5"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2, 0.21), (-3, 7), (5, 5), (0, 0), (1e-9, 1e9), (-1e14, 1e14)])
def test_ticks_cover_the_range_with_few_round_steps(low: float, high: float):
    ticks = svg.nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 2), (1, 12), (2, 12), (1, 50), (3, 1000)])
def test_rounds_are_whole_with_the_first_and_the_last(first: int, last: int):
    ticks = svg.round_ticks(first, last)
    assert ticks == sorted(set(ticks))
    assert (ticks[0], ticks[-1]) == (first, last)
    assert all(t == int(t) for t in ticks)


def test_labels_lie_apart_and_inside():
    for wanted in ([100.0] * 5, [26, 27, 28], [260, 261, 262], [50, 200, 51], []):
        places = lines.spread_apart(wanted, 14.5, 26, 262)
        ordered = sorted(places)
        assert all(b - a >= 14.49 for a, b in pairwise(ordered))
        assert all(26 <= p <= 262 for p in places)
    assert lines.spread_apart([50.0, 200.0], 14.5, 26, 262) == [50.0, 200.0]
    crowded = lines.spread_apart([100.0] * 40, 14.5, 26, 262)
    assert min(crowded) >= 26
    assert max(crowded) <= 262


def test_a_text_is_never_markup():
    drawn = lines.line_chart([a_line("<b>&\"'", (1, 1), (2, 2))], frame(), WIDE, "<i>")
    assert "<b>" not in drawn
    assert "<i>" not in drawn
    assert "&lt;b&gt;" in drawn
    assert svg.tag("text", "<", x="\"'") == '<text x="&#34;&#39;">&lt;</text>'


def test_a_chart_draws_each_line_its_band_its_end_and_its_values():
    drawn = lines.line_chart([a_line("a", (1, 1), (3, 2)), a_line("b", (1, 3), (2, 1))], frame(), WIDE, "both")
    assert drawn.count('class="ln"') == drawn.count('class="band"') == drawn.count('class="ld"') == 2
    assert re.findall(r'class="tp h"[^>]*>([^<]*)', drawn) == ["round 1", "round 2", "round 3"]
    first = drawn.split("round 1", 1)[1].split("round 2", 1)[0]
    assert first.index("b  3.00") < first.index("a  1.00"), "sorted by value"
    assert not re.search(r"nan|inf|\d\.\d\d+", re.sub(r">[^<]*<", "><", drawn)), "coordinates to a tenth of a pixel"


def test_many_rounds_have_at_most_sixty_places_and_many_lines_a_short_tip():
    long = lines.line_chart([a_line("a", *((float(t), 1.0) for t in range(1, 500)))], frame(), WIDE, "long")
    assert long.count('class="hit"') <= lines.MOST_HITS + 1
    many = lines.line_chart([a_line(f"m{i}", (1, i), (2, i)) for i in range(15)], frame(), WIDE, "many")
    assert "and 3 more, in the table" in many


def test_a_logarithmic_axis_has_powers_of_ten():
    assert svg.log_ticks(0.004, 0.5) == [0.001, 0.01, 0.1, 1.0]
    axis = svg.Axis(0.001, 1.0, 0.0, 300.0, [], logarithmic=True)
    assert [axis.at(x) for x in (0.001, 0.1, 1.0, 0.0)] == pytest.approx([0, 200, 300, 0])


def test_a_forest_shares_one_axis_and_cuts_what_is_far_wider():
    intervals = [rows.ForestRow("k0", 1.0, (-100.0, 102.0), [0.5, 1.5]), rows.ForestRow("k1", 2.0, (1.0, 3.0), [1.5, 2.5])]
    axis = rows.forest_axis(intervals)
    assert axis.low > -2
    wide, whole = (rows.forest_row(row, axis, "row") for row in intervals)
    assert wide.count('class="arw"') == 2
    assert whole.count('class="arw"') == 0
    assert wide.count('class="seed"') == 2
    assert rows.forest_axis([]).low <= 0 <= rows.forest_axis([]).high


def test_bars_of_many_clients_are_thin_sorted_and_without_names():
    few = rows.bars([rows.Bar(f"client {i}", [("c0", i + 1, "x")]) for i in range(30)], WIDE, "rows", "few")
    many = rows.bars([rows.Bar(f"client {i}", [("c0", i + 1, "x")]) for i in range(31)], WIDE, "rows", "many")
    assert "client 3" in few
    assert "client 3" not in many
    widths = [float(x) for x in re.findall(r'<rect[^>]*width="([\d.]+)"', many)]
    assert widths == sorted(widths, reverse=True)
