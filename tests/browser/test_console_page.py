"""The console in a real browser: what a reader sees and can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from marco_search.console.rendering import render
from marco_search.store.reads.job_record import Fork
from tests.browser.conftest import Running, until
from tests.records import HOSTILE, job_id, record_of, search_of, times, tokens_of

SEARCH = search_of()
OpenPage = Callable[..., Any]


@pytest.fixture
def job(console: Running) -> str:
    """Address of a finished job's page."""
    console.reader.put(record_of(SEARCH, 1), tokens_of(SEARCH))
    return f"{console.address}/jobs/{job_id(1)}"


def drawn(page: Any) -> Any:
    page.wait_for_selector("#panel h2")
    return page


def selected(page: Any) -> int:
    chosen = page.get_attribute("#frame", "aria-activedescendant")
    assert page.get_attribute(f"#{chosen}", "aria-selected") == "true"
    return int(chosen.removeprefix("node-"))


def test_the_keyboard_walks_the_tree(job: str, open_page: OpenPage) -> None:
    page = drawn(open_page(job))
    page.focus("#frame")
    assert selected(page) == 0
    page.keyboard.press("ArrowRight")
    first = selected(page)
    assert page.get_attribute(f"#node-{first}", "aria-level") == "2"
    page.keyboard.press("ArrowDown")
    assert selected(page) != first
    page.keyboard.press("ArrowUp")
    assert selected(page) == first
    page.keyboard.press("ArrowLeft")
    assert selected(page) == 0
    page.keyboard.press("End")
    assert selected(page) == record_of(SEARCH).winning_path[-1]
    assert "on the best path" in page.inner_text("#panel h2")
    page.keyboard.press("Home")
    assert selected(page) == 0


def test_tab_reaches_everything_and_focus_is_seen(job: str, open_page: OpenPage) -> None:
    page = drawn(open_page(job))
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        if page.evaluate("document.activeElement !== document.body"):
            assert outline != "none"
    assert {"frame", "round", "skip"} <= reached


def test_a_node_shows_its_tokens_and_what_the_model_weighed(job: str, open_page: OpenPage) -> None:
    page = drawn(open_page(job))
    page.focus("#frame")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".token")
    node = record_of(SEARCH).nodes[selected(page)]
    row = tokens_of(SEARCH)[node.node_id]
    assert page.locator(".token").count() == len(row.token_ids)
    assert page.locator(".candidates tbody tr").count() == 5
    least = row.confidences.index(min(row.confidences))
    chosen = page.locator(".token[aria-selected=true]")
    assert f"confidence {row.confidences[least]:.3f}" in chosen.get_attribute("aria-label")
    assert page.locator(".token").first.get_attribute("class") != "token"
    page.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    assert f"{row.confidences[1]:.4f}" in page.inner_text(".token-detail")
    panel = page.inner_text("#panel")
    first = next(r for r in SEARCH.tree.rollouts if node.node_id in r.path)
    for text in (f"Node {node.node_id}", str(first.seed), f"{node.visits}"):
        assert text in panel


def test_a_click_selects_a_node(job: str, open_page: OpenPage) -> None:
    page = drawn(open_page(job))
    page.click("#node-1")
    assert selected(page) == 1
    assert page.evaluate("document.activeElement.id") == "frame"


def test_without_scripts_the_tree_is_there(job: str, open_page: OpenPage) -> None:
    page = open_page(job, java_script_enabled=False)
    assert page.locator(".node:visible").count() == len(record_of(SEARCH).nodes)
    assert not page.locator("#round").is_visible()


def test_rounds_play_back_to_what_the_database_says(job: str, open_page: OpenPage) -> None:
    page = drawn(open_page(job))
    record = record_of(SEARCH)
    last = record.job.rounds
    assert page.inner_text("#round-label") == f"round {last} of {last}"
    assert page.evaluate("explorer.tree.visits.get(0)") == record.nodes[0].visits
    assert page.evaluate("explorer.tree.values.get(0)") == pytest.approx(record.nodes[0].value)
    page.click("[data-do=first]")
    assert page.inner_text("#round-label") == f"round 0 of {last}"
    assert page.locator(".node:visible").count() == 1
    page.click("[data-do=next]")
    early = record_of(SEARCH, rounds=1)
    assert page.locator(".node:visible").count() == len(early.nodes)
    assert page.inner_text("#node-0 .counts").split()[0] == str(early.nodes[0].visits)
    page.focus("#frame")
    page.keyboard.press("]")
    assert page.inner_text("#round-label").startswith("round 2 ")
    page.focus("#round")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#round-label").startswith("round 1 ")
    page.evaluate(f"explorer.playback.go({last - 2})")
    page.click("[data-do=play]")
    until(lambda: page.input_value("#round") == str(last))
    until(lambda: page.inner_text("[data-do=play]") == "Play")


def test_an_answer_marks_its_paths(job: str, console: Running, open_page: OpenPage) -> None:
    page = drawn(open_page(job))
    record = record_of(SEARCH)
    page.click("[data-answer='2']")
    on_paths = {i for r in record.reaching(record.answers[1]) for i in r.path}
    marked = page.locator(".marking .marked")
    assert {int(i[5:]) for i in marked.evaluate_all("all => all.map(one => one.id)")} == on_paths
    assert page.get_attribute("[data-answer='2']", "aria-pressed") == "true"
    page.click("[data-answer='2']")
    assert marked.count() == 0

    # Selected is where the best of them ended: of a search with another reward than confidence.
    ids = record.answers[1].rollout_ids
    voting = [r for r in record.rollouts if r.rollout_id in ids]
    best = max(voting, key=lambda r: (1 - r.value, -r.rollout_id))
    assert best.rollout_id != record.best_rollouts[1]
    chosen = (record.best_rollouts[0], best.rollout_id, *record.best_rollouts[2:])
    console.reader.put(replace(record_of(SEARCH, 2), best_rollouts=chosen), tokens_of(SEARCH))
    page = drawn(open_page(f"{console.address}/jobs/{job_id(2)}"))  # the console remembers `job`
    page.click("[data-answer='2']")
    assert selected(page) == best.leaf_id

    # A sample of a data set leads to its rollout.
    page = drawn(open_page(f"{job}#rollout-3"))
    marked = page.locator(".marking .marked")
    until(marked.count)
    path = {f"node-{i}" for i in record.rollouts[3].path}
    assert set(marked.evaluate_all("all => all.map(one => one.id)")) == path
    page.click("[data-do=unmark]")
    assert marked.count() == 0


def test_light_and_dark(job: str, open_page: OpenPage) -> None:
    def ground(page: Any) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light, dark = open_page(job), open_page(job, color_scheme="dark")
    drawn(light), drawn(dark)
    assert ground(light) != ground(dark)
    light.click("[data-theme-toggle]")
    assert ground(light) == ground(dark)
    light.reload()
    assert ground(drawn(light)) == ground(dark)  # it is remembered
    light.click("[data-theme-toggle]")
    # Text that can be read (WCAG: 4.5 to 1), also over the colours of tokens.
    for page in (light, dark):
        for ink, grounds in {
            "ink": ("card", "bg", "accent-soft", "conf-1", "conf-2", "conf-3", "conf-4"),
            "muted": ("card", "bg"), "accent": ("card",), "good": ("card",), "bad": ("card",),
            "warn": ("card", "bg"), "on-accent": ("accent",),
        }.items():  # fmt: skip
            for under in grounds:
                assert page.evaluate(CONTRAST, [ink, under]) >= 4.5, (ink, under)


CONTRAST = """([ink, ground]) => {
    const light = (name) => {
        document.head.style.color = `var(--${name})`;
        const linear = getComputedStyle(document.head).color.match(/[0-9.]+/g).map((c) => {
            const share = c / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}"""


def test_a_fork_shows_what_the_model_was_unsure_between(
    console: Running, open_page: OpenPage, tmp_path: Path
) -> None:
    record = record_of(SEARCH, 7)
    parent = record.nodes[0].node_id
    _, second, third, *_ = (node.node_id for node in record.nodes if node.parent_id == parent)
    forks = {
        second: Fork(taken=" =", taken_share=0.65, passed_over=":", passed_over_share=0.3),
        third: Fork(taken=" =", taken_share=0.65, passed_over="\n", passed_over_share=0.05),
    }
    nodes = tuple(replace(node, fork=forks.get(node.node_id)) for node in record.nodes)
    console.reader.put(replace(record, nodes=nodes), tokens_of(SEARCH))
    file = tmp_path / "job.html"
    file.write_text(render(console.reader, job_id(7), "html"), encoding="utf-8")
    for url in (f"{console.address}/jobs/{job_id(7)}", file.as_uri()):
        page = drawn(open_page(url))
        note = "here it was unsure between = (.65), : (.30) and ⏎ (.05)"
        assert note in page.inner_text("#frame")
        page.click(f"#node-{second}")
        assert ": (.30) instead of = (.65)" in page.inner_text("#panel")
        assert ": (.30) instead of = (.65)" in page.inner_text(f"#node-{second}")
        page.evaluate("explorer.playback.go(0)")  # before there was anything to choose from
        assert note not in page.inner_text("#frame")


def test_a_running_job_grows_before_the_reader_s_eyes(
    console: Running, open_page: OpenPage
) -> None:
    reader = console.reader
    reader.put(record_of(SEARCH, 2, rounds=0), tokens_of(SEARCH))
    page = open_page(f"{console.address}/jobs/{job_id(2)}")
    assert "first round" in page.inner_text("#no-tree")
    reader.put(record_of(SEARCH, 2, rounds=1), tokens_of(SEARCH))
    drawn(page)
    page.focus("#frame")
    page.keyboard.press("ArrowRight")
    chosen = selected(page)
    reader.put(record_of(SEARCH, 2), tokens_of(SEARCH))
    page.wait_for_selector("#heading[data-final=yes]")
    page.wait_for_selector("[data-answer='1']")
    rounds = record_of(SEARCH).job.rounds
    until(lambda: page.evaluate("explorer.tree.rounds") == rounds)
    assert selected(page) == chosen
    until(lambda: page.inner_text("#round-label") == f"round {rounds} of {rounds}")


def test_the_list_refreshes_and_leads_to_a_job(
    console: Running, job: str, open_page: OpenPage
) -> None:
    page = open_page(f"{console.address}/jobs?state=running")
    console.reader.put(record_of(SEARCH, 3, rounds=1, subject="A new one?"), {})
    page.wait_for_selector("text=A new one?")
    page.goto(f"{console.address}/jobs")
    page.click(f"a.id[href$='{job_id(1)}']")
    drawn(page)


def test_hostile_text_stays_text(console: Running, open_page: OpenPage, tmp_path: Path) -> None:
    record = record_of(SEARCH, 4, subject=HOSTILE)
    nodes = tuple(replace(node, text=HOSTILE) for node in record.nodes)
    answers = tuple(
        a.model_copy(update={"text": HOSTILE, "thought": HOSTILE}) for a in record.answers
    )
    tokens = {
        i: replace(row, token_texts=[HOSTILE] * len(row.token_ids))
        for i, row in tokens_of(SEARCH).items()
    }
    record = replace(record, nodes=nodes, answers=answers)
    console.reader.put(record, tokens)
    file = tmp_path / "job.html"
    file.write_text(render(console.reader, job_id(4), "html"), encoding="utf-8")
    for url in (f"{console.address}/jobs/{job_id(4)}", file.as_uri()):
        page = drawn(open_page(url))
        page.focus("#frame")
        page.keyboard.press("End")
        page.wait_for_selector(".token")
        assert "onerror=alert(1)" in page.inner_text(".tokens")
        assert page.locator("img").count() == 0
        assert page.title() != "owned"


def test_no_text_of_a_node_turns_the_page_around(console: Running, open_page: OpenPage) -> None:
    text = "pay \u202e54321\u202c"
    record = record_of(SEARCH, 7, subject=text)
    nodes = tuple(replace(node, text=text) for node in record.nodes)
    tokens = {
        i: replace(row, token_texts=[text] * len(row.token_ids))
        for i, row in tokens_of(SEARCH).items()
    }
    console.reader.put(replace(record, nodes=nodes), tokens)
    page = drawn(open_page(f"{console.address}/jobs/{job_id(7)}"))
    page.focus("#frame")
    page.keyboard.press("End")
    page.wait_for_selector(".token")
    assert "pay \\u202e54321\\u202c" in page.inner_text(".tokens")
    assert "\u202e" not in page.evaluate("document.documentElement.outerHTML")
    assert "\u202e" not in page.title()


def test_the_file_works_from_disk(
    console: Running, job: str, open_page: OpenPage, tmp_path: Path
) -> None:
    file = tmp_path / "job.html"
    file.write_text(render(console.reader, job_id(1), "html"), encoding="utf-8")
    page = drawn(open_page(file.as_uri()))
    page.focus("#frame")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".candidates")
    page.click("[data-theme-toggle]")
    page.click("[data-answer='1']")
    assert page.locator("#frame .node").count() == len(record_of(SEARCH).nodes)


def test_five_thousand_nodes_stay_usable(console: Running, open_page: OpenPage) -> None:
    size = len(SEARCH.tree.nodes) - 1
    copies = 5000 // size + 1
    record = times(record_of(SEARCH, 5), copies)
    assert len(record.nodes) > 5000
    rows = tokens_of(SEARCH)
    tokens = {i + copy * size: row for copy in range(copies) for i, row in rows.items()}
    console.reader.put(record, tokens)
    page = drawn(open_page(f"{console.address}/jobs/{job_id(5)}"))
    page.focus("#frame")
    for key in ("End", "ArrowLeft", "ArrowDown", "ArrowDown", "Home", "ArrowRight"):
        page.keyboard.press(key)
    assert f"node-{selected(page)}" == page.locator(".node").nth(1).get_attribute("id")
    # The tree never holds the page up for long: a walk of 50 nodes.
    walk = """() => {
        const started = performance.now();
        for (const node of explorer.tree.nodes.slice(-50)) explorer.select(node, false);
        explorer.playback.go(explorer.tree.rounds - 1);
        return performance.now() - started;
    }"""
    assert page.evaluate(walk) < 10_000


@pytest.mark.parametrize("width", [390, 768])
def test_on_a_narrow_screen_nothing_is_cut_off(
    console: Running, job: str, open_page: OpenPage, width: int
) -> None:
    console.reader.put(record_of(SEARCH, 6, state="failed", error="e" * 90, subject="q" * 300), {})
    page = drawn(open_page(job, viewport={"width": width, "height": 844}))
    places = "[...document.querySelectorAll('.scroll, .frame, html')]"
    wide = f"{places}.filter(e => e.scrollWidth > e.clientWidth)"
    answer = page.locator(".best .answer").bounding_box()
    assert answer["y"] + answer["height"] < 844  # in view before anything is scrolled
    assert page.evaluate(f"{wide}.length") == 0
    for path in ("jobs", "tenants", "workers", f"jobs/{job_id(6)}"):
        page.goto(f"{console.address}/{path}")
        assert page.evaluate(f"{wide}.length") == 0, path
    page.goto(f"{console.address}/jobs")
    assert not page.locator("[name=tenant]").is_visible()
    page.click("text=Filters")
    page.fill("[name=tenant]", "default")
    page.keyboard.press("Enter")
    page.wait_for_url("**tenant=default**")
    page.wait_for_selector("text=Filters (1)")


def test_a_click_anywhere_in_a_row_opens_its_job(
    console: Running, job: str, open_page: OpenPage
) -> None:
    page = open_page(f"{console.address}/jobs")
    page.click(f"tr:has([href$='{job_id(1)}']) td.moment", force=True)  # the link lies above it
    drawn(page)
    assert page.url == job


def test_logging_in(locked: Running, open_page: OpenPage) -> None:
    locked.reader.put(record_of(SEARCH, 1), tokens_of(SEARCH))
    page = open_page(f"{locked.address}/jobs/{job_id(1)}")
    page.fill("input[name=token]", "a-token-of-enough-characters")
    page.keyboard.press("Enter")
    drawn(page)
    assert page.evaluate("document.cookie") == ""
    page.click("text=Log out")
    page.wait_for_selector("input[name=token]")
