"""The manifests in ops/kubernetes fit the program: settings, commands, the time to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml  # type: ignore[import-untyped]

from marco_search.cli.main import cli
from marco_search.settings import Settings

FOLDER = Path(__file__).parents[2] / "ops" / "kubernetes"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def test_settings_and_commands_exist_and_a_worker_has_time_to_stop() -> None:
    (kustomization,) = documents("kustomization.yaml")
    given = dict(each.split("=", 1) for each in kustomization["configMapGenerator"][0]["literals"])
    settings = Settings.model_validate(given | {"DATABASE_URL": "postgresql://h/d"})
    assert settings.model_fields_set >= {"stop_s", "worker_processes", "runtime_model"}
    assert len(settings.model_fields_set) == len(given) + 1
    patch = yaml.safe_load(kustomization["patches"][0]["patch"])
    grace = patch["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > 2 * settings.stop_s
    for each in documents("marco.yaml"):
        if each["kind"] in ("Deployment", "Job"):
            (container,) = each["spec"]["template"]["spec"]["containers"]
            assert container["args"][0] in cli.list_commands(click.Context(cli))
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
            if container["args"][0] in ("worker", "scheduler", "serve"):
                assert ports["metrics"] == settings.metrics_port
    assert settings.metrics_host == "0.0.0.0"
    (scaled, _) = documents("scaling.yaml")
    target = scaled["spec"]["triggers"][0]["metadata"]["targetQueryValue"]
    assert int(target) == settings.worker_processes


def test_prometheus_finds_what_serves_metrics_under_the_names_that_it_has_in_compose() -> None:
    monitoring = FOLDER.parent / "monitoring"
    (found,) = yaml.safe_load((monitoring / "kubernetes.yml").read_text())["scrape_configs"]
    kept, _, named, _ = found["relabel_configs"]
    label = "__meta_kubernetes_pod_label_app_kubernetes_io_"
    assert kept["source_labels"][0] == f"{label}name"
    assert named["source_labels"] == [f"{label}component"]
    jobs = set()
    for each in documents("marco.yaml"):
        if each["kind"] == "Deployment":
            pod = each["spec"]["template"]
            (container,) = pod["spec"]["containers"]
            labels = pod["metadata"]["labels"]
            for port in container.get("ports", ()):
                if f"{labels['app.kubernetes.io/name']};{port['name']}" == kept["regex"]:
                    component = labels["app.kubernetes.io/component"]
                    jobs.add(named["replacement"].replace("$1", component))
    compose = yaml.safe_load((monitoring / "prometheus.yml").read_text())["scrape_configs"]
    assert jobs == {each["job_name"] for each in compose}
