"""What the command line draws, from plain values."""

from __future__ import annotations

import io
from operator import itemgetter

from rich.cells import cell_len
from rich.console import Console

from marco_search.cli.output import Column, number, text_table, wrap_cells
from marco_search.cli.tree_text import (
    draw_tree,
    fraction,
    tree_json,
)
from marco_search.render.layout import cut, one_line
from marco_search.store.reads.job_record import TreeRow


def node(
    node_id: int, parent_id: int | None, text: str, visits: int, action: str = "step"
) -> TreeRow:
    value = 0.9 + visits / 1000 if visits else None
    return TreeRow(
        node_id=node_id, parent_id=parent_id, depth=0, round=1, action=action, text=text, tokens=1,
        confidence=None, terminal=False, visits=visits, value=value,
    )  # fmt: skip


TREE = [
    node(0, None, "", 8, "root"),
    node(1, 0, "3*4=12.\n", 3),
    node(2, 0, "3*4=21.\n", 5),
    node(3, 2, "21+1=22.\n", 5),
    node(4, 3, "</Thought>\n<Output>\n22\n</Output>", 4, "answer"),
    node(5, 3, "Wait! Maybe I made some mistakes!", 1, "reflection"),
    node(6, 1, "</Thought>\n<Output>\n12\n</Output>", 3, "answer"),
]
WINNING = (0, 1, 6)


def lines(**options: object) -> list[str]:
    return draw_tree(TREE, WINNING, **options).plain.splitlines()  # type: ignore[arg-type]


def test_a_tree_shows_counts_values_and_the_winning_path_first() -> None:
    assert lines() == [
        " visits  value",
        "      8   .908 * (the question)",
        "      3   .903 * ├─ 3*4=12.",
        "      3   .903 * │  → 12",
        "      5   .905   └─ 3*4=21.",
        "      5   .905      21+1=22.",
        "      4   .904      ├─ → 22",
        "      1   .901      └─ Wait! Maybe I made some mistakes!",
    ]


def test_a_tree_can_be_drawn_in_ascii() -> None:
    art = "\n".join(lines(ascii_only=True))
    assert art.isascii()
    assert "|- 3*4=12." in art
    assert "-> 12" in art


def test_what_is_left_out_is_counted_where_it_hangs() -> None:
    drawn = lines(limit=4)
    assert drawn[-1].strip() == "… 3 more nodes"
    assert len(drawn) == 1 + 4 + 1
    assert lines(depth=1)[2:] == [
        "      3   .903 * ├─ 3*4=12.",
        "                 │  … 1 more node",
        "      5   .905   └─ 3*4=21.",
        "                    … 3 more nodes",
    ]


def test_the_winning_path_is_drawn_however_small_the_limit() -> None:
    drawn = lines(limit=1)
    assert [line[15:16] for line in drawn].count("*") == len(WINNING)


def test_full_draws_every_node_and_every_word() -> None:
    words = " ".join(f"word{i}" for i in range(60))
    tree = [TREE[0], node(1, 0, words, 1), node(2, 0, "b", 1)]
    folded = draw_tree(tree, (), width=60).plain
    assert "word59" not in folded
    full = draw_tree(tree, (), width=60, limit=1, full=True).plain
    assert all(f"word{i}" in full for i in range(60))
    assert all(cell_len(line) <= 60 for line in full.splitlines())


def test_lines_fit_the_width_in_chinese_too() -> None:
    tree = [TREE[0], node(1, 0, "小美有五十八支铅笔" * 20, 1)]
    for full in (False, True):
        drawn = draw_tree(tree, (), width=70, full=full).plain.splitlines()
        assert max(map(cell_len, drawn)) <= 70


def test_a_chain_of_thousands_of_nodes_can_be_drawn() -> None:
    tree = [TREE[0], *(node(i, i - 1, f"step {i}", 1) for i in range(1, 5000))]
    assert "step 4999" in draw_tree(tree, (), full=True).plain


def test_a_node_never_visited_has_no_value() -> None:
    assert "      0      -   " in draw_tree([TREE[0], node(1, 0, "a", 0)], ()).plain


def test_a_tree_for_scripts_holds_whole_nodes() -> None:
    data = tree_json(TREE, WINNING)
    assert data["winning_path"] == [0, 1, 6]
    nodes = data["nodes"]
    assert isinstance(nodes, list)
    assert nodes[1] == {
        "node_id": 1, "parent_id": 0, "action": "step", "text": "3*4=12.\n", "visits": 3,
        "value": 0.903,
    }  # fmt: skip


def test_control_characters_of_a_model_never_reach_the_terminal() -> None:
    assert one_line("a\x1b[31mb\x07") == "a\ufffd[31mb\ufffd"
    assert one_line("left \u202eright\u200d") == "left \\u202eright"
    assert one_line("one\r\n\n  two\tthree ") == "one ⏎ two three"


def test_fold_and_wrap_count_terminal_cells() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"
    assert cell_len(cut("铅笔" * 10, 9)) <= 9
    assert wrap_cells("one two three", 8) == ["one two", "three"]
    assert wrap_cells("铅笔铅笔", 5) == ["铅笔", "铅笔"]
    assert wrap_cells("", 5) == [""]
    assert "".join(wrap_cells("x" * 100, 7)) == "x" * 100


def test_a_fraction_has_three_decimals() -> None:
    assert [fraction(v) for v in (0.9619, 1.0, 0.0, None)] == [".962", "1.000", ".000", "-"]


def printed(table: object, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def test_a_table_reads_no_markup_and_shrinks_only_what_may_shrink() -> None:
    columns = [
        Column("question", itemgetter(0), flexible=True),
        number("tokens", itemgetter(1)),
    ]
    rows = [["[bold]how many[/] " + "x" * 80, "123,456"]]
    wide = printed(text_table(columns, rows), 200)
    narrow = printed(text_table(columns, rows, width=40), 40)
    assert "[bold]how many[/] " + "x" * 80 in wide
    assert "…" in narrow
    assert "123,456" in narrow
    assert max(map(cell_len, narrow.splitlines())) <= 40
