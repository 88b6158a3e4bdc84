"""The alerts and the dashboard of ops/monitoring ask for metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from marco_search.metrics import METRICS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "ops" / "monitoring"
RULES = [
    rule
    for group in YAML(typ="safe").load(FOLDER / "alerts.yml")["groups"]
    for rule in group["rules"]
]
TESTS = FOLDER / "alerts_test.yml"
PANELS = json.loads((FOLDER / "grafana" / "dashboards" / "marco.json").read_text())["panels"]

TARGETS = [target for panel in PANELS for target in panel.get("targets", ())]


def test_every_metric_that_is_asked_for_exists_and_every_metric_is_shown() -> None:
    shown = {t["expr"] for panel in PANELS for t in panel.get("targets", ())}
    expressions = " ".join([*shown, *(rule["expr"] for rule in RULES)])
    names = set(re.findall(r"\bmarco_\w+", expressions))
    # A histogram is asked for by the names of its samples.
    samples = {f"{m.name}_bucket" if m.kind == "histogram" else m.name for m in METRICS}
    assert names == samples


def test_the_labels_that_are_asked_for_exist() -> None:
    known = {metric.name: set(metric.labels) for metric in METRICS}
    for expression in [*(rule["expr"] for rule in RULES), *(t["expr"] for t in TARGETS)]:
        for name, asked in re.findall(r"\b(marco_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*[=!]", asked)) <= known[name], expression


def test_a_panel_says_what_it_shows_in_which_unit_and_which_line_is_which() -> None:
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    for target in TARGETS:
        outer = re.match(r"(?:histogram_quantile\([\d.]+, )?\w+ by \(([^)]*)\)", target["expr"])
        labels = set(re.findall(r"\w+", outer[1] if outer else "")) - {"le"}
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) == labels, target["expr"]
    titles = [panel["title"] for panel in PANELS]
    assert len(titles) == len(set(titles))


def test_panels_do_not_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_the_runbook_has_every_alert_in_their_order() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    sections = re.findall(r"^### (\w+)\n(Page|Ticket)\. ", runbook, re.MULTILINE)
    alerts = [(rule["alert"], rule["labels"]["severity"].capitalize()) for rule in RULES]
    assert sections == alerts


def test_every_alert_is_tested_just_short_of_it_and_a_little_beyond() -> None:
    groups = {group["name"]: group for group in YAML(typ="safe").load(TESTS)["tests"]}
    short, beyond = (groups[name] for name in ("Each is just short", "Each goes a little beyond"))
    assert "exp_samples" not in short["promql_expr_test"][0], "none has fired"
    fired = [sample["labels"] for sample in beyond["promql_expr_test"][0]["exp_samples"]]
    assert fired == [f'{{alertname="{rule["alert"]}"}}' for rule in RULES]
    asked_of = [[series["series"] for series in group["input_series"]] for group in (short, beyond)]
    assert asked_of[0] == asked_of[1]


@pytest.mark.parametrize(
    "arguments",
    ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"],
)
def test_prometheus_takes_the_configuration_and_alerts_fire_when_they_should(
    arguments: str,
) -> None:
    promtool(*arguments.split())


def test_prometheus_takes_the_configuration_for_kubernetes(tmp_path: Path) -> None:
    config = (FOLDER / "kubernetes.yml").read_text()
    # Debian's is built without what asks Kubernetes.
    asked = re.search(r"    kubernetes_sd_configs:\n.*\n", config)
    assert asked
    static = config.replace(asked[0], "    static_configs: [{targets: [pod]}]\n")
    (tmp_path / "static.yml").write_text(static.replace("alerts.yml", f"{FOLDER}/alerts.yml"))
    promtool("check", "config", str(tmp_path / "static.yml"))


def promtool(*words: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool, which comes with Prometheus")
    done = subprocess.run(
        [program, *words], cwd=FOLDER, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
