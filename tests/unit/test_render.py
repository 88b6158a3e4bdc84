"""One job as SVG, dot, Mermaid, JSON, HTML file and list of rows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from marco_search.cli.tree_text import draw_tree
from marco_search.console.rendering import html_file, tree_rows
from marco_search.render.document import document, vocabulary_json
from marco_search.render.drawings import dot, mermaid, svg
from marco_search.render.layout import Layout, children_of, places, told_apart, visible_nodes
from marco_search.store.reads.job_record import NodeTokens
from tests.records import HOSTILE, record_of, search_of, times, tokens_of

SEARCH = search_of()
RECORD = record_of(SEARCH)
TOKENS = tokens_of(SEARCH)


def hostile_nodes() -> tuple:  # type: ignore[type-arg]
    return tuple(replace(node, text=HOSTILE + "\x00\x1b\ufffe") for node in RECORD.nodes)


def test_the_winning_path_comes_first_and_only_a_choice_moves_to_the_right() -> None:
    place = places(Layout(RECORD.nodes, RECORD.winning_path))
    assert [p.row for p in place.values()] == list(range(len(RECORD.nodes)))
    assert RECORD.winning_path
    assert [place[i].row for i in RECORD.winning_path] == list(range(len(RECORD.winning_path)))
    children = children_of(RECORD.nodes, RECORD.winning_path)
    for parent, below in children.items():
        for child in below:
            step = place[child.node_id].column - place[parent].column
            assert step == (len(below) > 1)


BOXES = "Step 1: Tom has 6 boxes with 67 books each, so 67*6="


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        ([f"{BOXES}402.", f"{BOXES}492."], ["Step 1: Tom…67*6=402.", "Step 1: Tom…67*6=492."]),
        # As another begins, so it ends; what differs early needs nothing left out.
        ([f"{BOXES}402", f"{BOXES}402, and"], ["Step 1: Tom h…67*6=402", "Step 1:…67*6=402, and"]),
        ([f"{BOXES}1", "Mary has 7 boxes with 9 books"], ["Step 1: Tom has 6 box…"] * 1
         + ["Mary has 7 boxes with…"]),
        ([f"{BOXES}1 pen", f"{BOXES}1 pen", "a"], ["Step 1: Tom has 6 box…"] * 2 + ["a"]),
        (["→ 402", "→ 492"], ["→ 402", "→ 492"]),
        (["小美有五十八支铅笔，小明给了她七支", "小美有五十八支铅笔，小明拿走了七支"],
         ["小美有…小明给了她七支", "小美有…小明拿走了七支"]),
        (["2" * 40 + "5", "2" * 40 + "6"], ["22222222…2222222222225", "22222222…2222222222226"]),
    ],
)  # fmt: skip
def test_siblings_are_told_apart(texts: list[str], shown: list[str]) -> None:
    found = told_apart(texts)
    assert [label.whole for label in found] == texts
    assert [label.fitting(22) for label in found] == shown
    assert [label.fitting(200) for label in found] == texts


def test_the_svg_is_well_formed_and_marks_the_winning_path() -> None:
    root = ElementTree.fromstring(
        svg(Layout(RECORD.nodes, RECORD.winning_path), "1 + 1 < 3 & so on")
    )
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}g")) == len(RECORD.nodes)
    thick = [p for p in root.findall(f"{space}path") if p.get("stroke-width") == "3"]
    assert len(thick) == len(RECORD.winning_path) - 1


def test_hostile_text_stays_text_in_every_drawing() -> None:
    nodes, winning = hostile_nodes(), RECORD.winning_path
    drawn = svg(Layout(nodes, winning), HOSTILE)
    root = ElementTree.fromstring(drawn)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert names == {"svg", "title", "rect", "text", "path", "g"}
    chart = mermaid(Layout(nodes, winning))
    assert "<script" not in chart and "{{" not in chart
    for line in dot(Layout(nodes, winning), 'a "quote" and \\').splitlines():
        assert re.sub(r"\\.", "", line).count('"') % 2 == 0


def test_a_ring_of_nodes_in_a_tree_that_was_tampered_with_stops_no_drawing() -> None:
    last, above = RECORD.nodes[-1].node_id, RECORD.nodes[-1].parent_id
    nodes = [replace(n, parent_id=last) if n.node_id == above else n for n in RECORD.nodes]
    assert nodes[0].node_id in visible_nodes(Layout(nodes, ()), None, None)
    assert svg(Layout(nodes, ()), "ring").count("<g>") < len(nodes)


def test_dot_and_mermaid_have_every_node_and_edge() -> None:
    text = dot(Layout(RECORD.nodes, RECORD.winning_path), "title")
    assert len(re.findall(r" -> ", text)) == len(RECORD.nodes) - 1
    assert text.count("penwidth=3") == len(RECORD.winning_path) - 1
    chart = mermaid(Layout(RECORD.nodes, RECORD.winning_path))
    assert len(re.findall(r" --- ", chart)) == len(RECORD.nodes) - 1
    assert chart.count(":::winning") == len(RECORD.winning_path)


def test_the_document_is_json_with_tokens_and_the_candidates_it_can_spell() -> None:
    data = json.loads(json.dumps(document(RECORD, TOKENS)))
    assert data["format"] == "marco-search/job"
    assert len(data["nodes"]) == len(RECORD.nodes)
    assert {"parent_id", "text", "visits", "value"} <= set(data["nodes"][0])
    node = next(iter(data["tokens"].values()))
    assert len(node["top_ids"]) == 5 * len(node["ids"])
    assert all(0 <= p <= 1 for p in node["top_probabilities"])
    known = TOKENS[int(next(iter(data["tokens"])))]
    assert data["vocabulary"][str(known.token_ids[0])] == known.token_texts[0]
    assert "1003" not in data["vocabulary"]  # a candidate that was never generated
    assert document(RECORD)["winning_path"] == list(RECORD.winning_path)


def test_candidates_read_as_the_runtime_spelled_them() -> None:
    row = NodeTokens(
        node_id=1, token_ids=[5], token_texts=["é"], logprobs=[0.0], confidences=[1.0],
        top_ids=[5, 6, -1, -1, -1], top_logprobs=[0.0, -1.0, *[float("-inf")] * 3],
        top_texts=[None, "six", None, None, None],
    )  # fmt: skip
    assert vocabulary_json([row]) == {"5": "é", "6": "six"}


def test_the_list_of_a_tree_has_every_node_and_closes_what_it_opens() -> None:
    items = list(tree_rows(RECORD.nodes, RECORD.winning_path))
    assert sorted(item["node"].node_id for item in items) == [n.node_id for n in RECORD.nodes]
    level = 0
    for item in items:
        level += item["opens"] - item["closes"]
        assert level >= 1
    chain = {n.parent_id for n in RECORD.nodes}
    assert sum(item["opens"] for item in items) <= len(chain)


@pytest.mark.parametrize("text", [HOSTILE, "</SCRIPT>", "<!--", "\u2029"])
def test_no_text_ends_the_script_element_with_the_document(text: str) -> None:
    record = replace(RECORD, nodes=tuple(replace(node, text=text) for node in RECORD.nodes))
    found = re.search(r'id="document">(.*?)</script>', html_file(record, TOKENS), re.DOTALL)
    assert found and not re.search(r"[<>&\u2028\u2029]", found[1])
    assert json.loads(found[1])["nodes"][1]["text"] == text


def test_the_file_allows_exactly_its_own_scripts_and_names_no_host() -> None:
    record = replace(RECORD, nodes=hostile_nodes())
    html = html_file(record, TOKENS)
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert HOSTILE not in html and "<img" not in html
    assert not re.search(r'(?:src|href)\s*=\s*"(?!/jobs)[^"#]', html)
    assert "unsafe" not in html.partition("</head>")[0].partition("<style>")[0]


def test_thousands_of_nodes_are_drawn_everywhere() -> None:
    record = times(RECORD, 5000 // len(RECORD.nodes) + 1)
    assert len(record.nodes) > 4900
    drawn = draw_tree(record.nodes, record.winning_path, full=True, width=200).plain
    assert drawn.count("\n") >= len(record.nodes)
    folded = draw_tree(record.nodes, record.winning_path, limit=40).plain
    assert folded.count("\n") < 120 and "more nodes" in folded
    assert svg(Layout(record.nodes, record.winning_path), "t").count("<g>") == len(record.nodes)
