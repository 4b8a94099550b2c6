"""Laws of `vargpt deploy --canary`: any version is tried before the alias moves, by the gates of promotion
too, and what was refused is not rolled out later.
"""

import shutil
import time
from pathlib import Path

import pytest

from model.errors import UserError
from tests.training.deployment.running_service import RunningService, version_tags
from tests.training.registry.candidates import METRICS, aliases, changed
from training.commands.deploy import deploy
from training.registry.promotion import roll_back

ROOT = Path(__file__).parents[3]
# Passes the floors of params.yaml at size tiny, and is worse than METRICS by more than the margin.
WORSE = changed("draw.all_right", 0.945)
GATE = r"draw\.all_right: failed by 0\.0050: 0\.9450, must be at least 0\.9500 \(best champion 0\.9700\)"


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A cluster in which versions 1 and 3 answer and version 2 fails now and then."""
    made = RunningService(errors={"2": 10})
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig(tmp_path)))
    monkeypatch.delenv("VARGPT_NAMESPACE", raising=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def registry(mlflow_db, client, service):
    """Three versions with the same figures, and another with worse ones; the first is deployed."""
    client.create_registered_model("vargpt")
    for metrics in (METRICS, METRICS, METRICS, WORSE):
        register(client, metrics)
    client.set_registered_model_alias("vargpt", "champion", "1")
    call(mlflow_db)
    assert service.version == "1"
    return mlflow_db


def register(client, metrics):
    """A version with these figures."""
    run = client.create_run(client.create_experiment(f"e{time.monotonic_ns()}")).info.run_id
    tags = version_tags(run * 2, metrics)
    return str(client.create_model_version("vargpt", f"runs:/{run}/model", run, tags=tags).version)


def call(uri, **options):
    deploy(by="ada", tracking_uri=uri, observe=0.01, **options)


def crown(client, *champions):
    """Makes versions champions one after another, as promotions would."""
    client.set_registered_model_alias("vargpt", "champion", champions[-1])
    client.set_registered_model_tag("vargpt", "vargpt.champions", ",".join(champions))


def test_a_canary_whose_figures_are_worse_than_the_deployed_versions_is_refused_by_the_gate(
    registry, client, service
):
    crown(client, "1", "4")

    with pytest.raises(UserError, match=rf"^version 4 \(\w+\) was tried and not taken: {GATE}"):
        call(registry, canary=10)

    assert service.version == "1"
    assert not service.was_tried, "no client has met it"


def test_a_refused_champion_is_not_rolled_out_by_the_next_plain_deploy_which_says_how_to_go_back(
    registry, client, service
):
    crown(client, "1", "2")
    with pytest.raises(
        UserError, match=r"10\.0% of its requests failed.*`vargpt rollback` makes the champion"
    ):
        call(registry, canary=10)

    with pytest.raises(
        UserError, match=r"^version 2 .* was tried and not taken: 10\.0% .* `vargpt rollback`"
    ):
        call(registry)
    assert service.version == "1"

    roll_back(registry, "vargpt", "ada")
    call(registry)
    assert (aliases(registry)["champion"], service.version) == ("1", "1")


def test_a_refused_version_that_is_tried_again_and_is_good_is_rolled_out(registry, client, service):
    crown(client, "1", "2")
    with pytest.raises(UserError):
        call(registry, canary=10)
    service.errors.clear()

    call(registry, canary=10)

    assert service.version == "2"
    crown(client, "1")
    call(registry)
    crown(client, "1", "2")
    call(registry)
    assert service.version == "2"


@pytest.mark.parametrize("what", [{"version": "3"}, {"alias": "challenger"}])
def test_a_version_that_is_good_becomes_champion_and_is_rolled_out(registry, client, service, what):
    client.set_registered_model_alias("vargpt", "challenger", "3")

    call(registry, canary=10, **what)

    assert aliases(registry) == {"champion": "3"}
    assert service.version == "3"
    assert service.was_tried
    assert ("deployments", "vargpt-canary") not in service.objects


@pytest.mark.parametrize("version", ["2", "4"])
def test_a_version_that_is_refused_never_was_champion(registry, service, version):
    with pytest.raises(UserError, match="was tried and not taken"):
        call(registry, canary=10, version=version)

    assert aliases(registry)["champion"] == "1"
    call(registry)
    assert service.version == "1"


def test_a_good_trial_of_what_promotion_refuses_changes_nothing(registry, client, service):
    best = register(client, changed("draw.all_right", 0.999))
    crown(client, best, "1")

    with pytest.raises(UserError, match=r"draw\.all_right: failed by .* \(best champion 0\.9990\)"):
        call(registry, canary=10, version="3")

    assert (aliases(registry)["champion"], service.version) == ("1", "1")
    assert ("deployments", "vargpt-canary") not in service.objects


def test_what_was_withdrawn_sets_no_bar_for_the_next_canary(registry, client, service, capsys):
    crown(client, "4", "1")
    roll_back(registry, "vargpt", "ada")
    capsys.readouterr()

    call(registry, canary=10)

    assert "held against floors alone" in capsys.readouterr().err
    assert service.version == "4"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"canary": 10, "rollback": True}, "--rollback"),
        ({"version": "3"}, "name what --canary tries"),
        ({"canary": 10, "version": "3", "alias": "challenger"}, "give one of them"),
        ({"canary": 10, "version": "9"}, "vargpt has no version 9 with weights; it has 1, 2, 3, 4"),
        ({"canary": 10, "alias": "best"}, "vargpt has no best"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_changes(registry, service, options, said):
    with pytest.raises(UserError, match=said):
        call(registry, **options)

    assert service.version == "1"
    assert not service.was_tried
