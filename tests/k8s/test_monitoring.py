"""Laws of alerts and dashboards: they fire when they should, and name only metrics that there are."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from serving.metrics import EngineMetrics
from training.params import load_params
from training.tracking.exporter import PREFIX, TOLD, MetricsExporter

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "k8s" / "overlays" / "monitoring"
GROUPS = yaml.safe_load((FOLDER / "rules.yaml").read_text())["spec"]
RULES = [rule for group in GROUPS["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
TESTS = Path(__file__).with_name("alerts.test.yaml")
DASHBOARDS = sorted(FOLDER.glob("*.json"))
# What prometheus_client makes of one metric.
SERIES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


def promtool(folder: Path, *arguments: str) -> str:
    """What promtool says; it panics where it has no place for temporary files."""
    if shutil.which("promtool") is None:
        (pytest.fail if os.environ.get("CLUSTER") == "required" else pytest.skip)(
            "no promtool: apt-get install prometheus"
        )
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def queries() -> list[str]:
    """Every query of the dashboards, for all jobs at once."""
    return [
        target["expr"].replace("$job", ".*")
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]


def series_of(registry: CollectorRegistry) -> set[str]:
    """Names of the series that a registry exports."""
    return {family.name + ending for family in registry.collect() for ending in SERIES.get(family.type, [""])}


def test_the_alerts_fire_when_they_should_and_only_then(tmp_path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(GROUPS))
    shutil.copy(TESTS, tmp_path)

    promtool(tmp_path, "test", "rules", TESTS.name)


def test_every_alert_has_a_unit_test_that_it_fires():
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    fired = {case["alertname"] for case in cases if case.get("exp_alerts")}

    assert fired == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_leads_to_a_paragraph_of_the_runbook(rule):
    path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (\w+)$", (ROOT / path).read_text(), re.MULTILINE)

    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings


def test_a_checkpoint_is_slow_from_half_of_the_time_that_a_job_of_the_published_size_is_given():
    [rule] = [rule for rule in ALERTS if rule["alert"] == "TrainingCheckpointSlow"]
    limit = float(rule["expr"].rpartition(">")[2])

    assert limit == load_params(ROOT / "params.yaml", "7b").cluster.save_seconds / 2


def test_the_address_of_the_runbooks_is_set_in_one_place(tmp_path):
    if shutil.which("kubectl") is None:
        (pytest.fail if os.environ.get("CLUSTER") == "required" else pytest.skip)("no kubectl")
    folder, address = shutil.copytree(FOLDER, tmp_path / "overlay"), "https://docs.test/runbooks"
    path = folder / "kustomization.yaml"
    path.write_text(path.read_text().replace("address=docs/runbooks.md", f"address={address}"))

    made = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    items = list(yaml.safe_load_all(made.stdout))
    [rules] = [item for item in items if item["kind"] == "PrometheusRule"]
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule]

    urls = [rule["annotations"]["runbook_url"] for rule in alerts]
    assert urls == [f"{address}#{rule['alert'].lower()}" for rule in ALERTS]
    assert "runbooks" not in {item["metadata"]["name"] for item in items}, "nothing that a cluster needs"


def test_every_query_of_a_dashboard_can_be_read(tmp_path):
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))

    assert len(rules) > 20
    promtool(tmp_path, "check", "rules", "queries.yaml")


def exported(folder: Path) -> set[str]:
    """Names of all series that training, serving and the rules make."""
    engine = EngineMetrics()
    engine.watch(queue_length=lambda: 0, running=lambda: 0)
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    return series_of(engine.registry) | series_of(MetricsExporter("stage1", folder).registry) | recorded


def named_in(texts: list[str]) -> set[str]:
    """Names of our series in queries."""
    pattern = r"\b(?:[a-z_]+:)?vargpt_[a-z0-9_]+(?::[a-z0-9_]+)?"
    return {name for text in texts for name in re.findall(pattern, text)}


def test_dashboards_and_alerts_name_only_metrics_that_are_exported(tmp_path):
    named = named_in([*queries(), *(rule["expr"] for rule in RULES)])

    assert named <= exported(tmp_path)
    assert {"vargpt_training_loss", "vargpt_requests_total"} <= named


def test_dashboards_show_every_metric_that_a_training_tells():
    told = {f"{PREFIX}_{series.name}" for series in TOLD.values()}

    assert told <= named_in(queries())


def test_a_metric_that_nobody_exports_would_be_found(tmp_path):
    assert named_in(["sum(rate(vargpt_training_mistyped_total[5m]))"]) - exported(tmp_path)


def test_monitors_select_the_pods_and_the_service_that_there_are():
    pod_monitor, service_monitor = yaml.safe_load_all((FOLDER / "monitors.yaml").read_text())
    job = yaml.safe_load((ROOT / "k8s" / "stage1.yaml").read_text())
    template = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    [port] = template["spec"]["containers"][0]["ports"]
    service = next(yaml.safe_load_all((ROOT / "k8s" / "serving" / "service.yaml").read_text()))

    assert pod_monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert pod_monitor["spec"]["podMetricsEndpoints"][0]["port"] == port["name"]
    assert service_monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service_monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
