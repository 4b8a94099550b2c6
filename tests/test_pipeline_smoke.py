"""Laws of the whole: from a fresh copy of the repository to an answered request, at the smallest size."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
SHARES = {
    "draw": ("all_right", "unseen"),
    "vqa": ("digit", "color", "background"),
    "pope": ("random", "popular", "adversarial"),
}


class Workspace:
    """A clone of the repository somewhere, and what commands say in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, cwd: Path | None = None, codes: tuple[int, ...] = (0,)) -> str:
        """What a command says on both streams; an exit code that is not expected fails with it."""
        # One thread: the size is too small for more, and machines that do other work too are common.
        paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
        own = {
            "BENTOML_HOME": str(self.folder / "outputs" / "bentoml"),
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join(paths),
        }
        environment = {**os.environ, **own}
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if cwd is None else None,
            text=True,
        )
        assert done.returncode in codes, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def vargpt(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """What a command of ours says."""
        return self.run(sys.executable, "-m", "training.commands", *arguments, codes=codes)

    def read(self, path: str) -> dict:
        """A JSON file."""
        return json.loads((self.folder / path).read_text())


def commit(workspace: Workspace, message: str) -> None:
    """Commit everything that git does not ignore."""
    who = ("-c", "user.name=smoke", "-c", "user.email=smoke@localhost")
    for command in (["add", "-A"], [*who, "commit", "-q", "--allow-empty", "-m", message]):
        workspace.run("git", *command)


def clone_of_the_working_tree(folder: Path) -> Workspace:
    """The repository as it lies, at size smoke, with every change committed there."""
    workspace = Workspace(folder)
    listed = workspace.run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("size: tiny", "size: smoke", 1))
    workspace.run("git", "init", "-q")
    commit(workspace, "smoke")
    return workspace


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    copy = clone_of_the_working_tree(tmp_path_factory.mktemp("copy"))
    copy.pulled = copy.run("dvc", "pull")
    copy.reproduced = copy.run("dvc", "repro")
    copy.commit = copy.run("git", "rev-parse", "HEAD").strip()
    copy.log = copy.vargpt("demo")
    return copy


def test_a_fresh_clone_pulls_and_reproduces_with_dvc_alone(played):
    assert "1 file added" in played.pulled
    for stage in ("prepare", "backbones", "encode", "stage1", "stage2", "stage3", "share", "evaluate"):
        assert f"Running stage '{stage}'" in played.reproduced
    assert "Running stage" not in played.log, "the demo has nothing left to train"


def test_a_bare_push_without_a_remote_of_the_user_fills_nothing(played):
    before = sorted((played.folder / ".dvc" / "raw").rglob("*"))

    said = played.run("dvc", "push", codes=(0, 1))

    assert "no remote specified" in said
    assert sorted((played.folder / ".dvc" / "raw").rglob("*")) == before


@pytest.fixture(scope="module")
def pulled(played, tmp_path_factory):
    """Another machine: a clone of what was committed, with what was pushed to a remote that both reach."""
    remote, clone = tmp_path_factory.mktemp("remote"), tmp_path_factory.mktemp("other") / "clone"
    played.run("dvc", "remote", "add", "--default", "storage", str(remote))
    commit(played, "trained")
    played.run("dvc", "push")
    played.run("git", "clone", "-q", str(played.folder), str(clone))
    other = Workspace(clone)
    other.run("dvc", "pull")
    return other


def test_a_pushed_model_is_pulled_and_answers_on_another_machine_without_training(played, pulled):
    assert not (pulled.folder / "outputs").exists()
    theirs = (pulled.folder / "artifacts" / "model" / "manifest.json").read_bytes()
    assert theirs == (played.folder / "outputs" / "stage3" / "model" / "manifest.json").read_bytes()

    said = pulled.vargpt("ask", "Which digits do you know?", "--json")
    assert json.loads(said.splitlines()[-1])["usage"]["completion_tokens"] > 0


def test_a_pulled_model_is_evaluated_with_the_same_figures(played, pulled):
    pulled.vargpt("data", "prepare")
    pulled.vargpt("evaluate", "--metrics", "here.json", "--plots", "outputs/plots")

    ours, theirs = played.read("metrics/evaluate.json"), pulled.read("here.json")
    assert theirs["draw"] == ours["draw"]
    assert theirs["vqa"] == ours["vqa"]


def test_dvc_compares_figures_and_parameters_of_a_clone_with_its_last_commit(pulled):
    assert "changed" not in pulled.run("dvc", "metrics", "diff").lower()
    params = pulled.folder / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: 1", 1))

    assert "seed" in pulled.run("dvc", "params", "diff")
    # `params` is the stage that tells the others which of their parameters have changed.
    assert "params.yaml" in pulled.run("dvc", "status")


@pytest.fixture(scope="module")
def tried(played, tmp_path_factory):
    """A copy of the trained workspace, in which an experiment trains the last stage anew, for a few steps."""
    folder = tmp_path_factory.mktemp("tried") / "copy"
    shutil.copytree(played.folder, folder, symlinks=True)
    copy = Workspace(folder)
    commit(copy, "trained")
    copy.tried = copy.run("dvc", "exp", "run", "--name", "short", "-S", "smoke.stage3.steps=4")
    return copy


def test_an_experiment_with_another_parameter_runs_what_depends_on_it_alone(tried):
    for stage in ("stage3", "share", "evaluate"):
        assert f"Running stage '{stage}'" in tried.tried
    for stage in ("prepare", "backbones", "encode", "stage1", "stage2"):
        assert f"Running stage '{stage}'" not in tried.tried
    assert "Ran experiment(s): short" in tried.tried


def test_experiments_are_shown_with_their_parameters_and_figures(played, tried):
    revisions = json.loads(tried.run("dvc", "exp", "show", "--json").splitlines()[-1])

    (baseline,) = (entry for entry in revisions if entry["rev"] != "workspace")
    (experiment,) = (entry["revs"][0] for entry in baseline["experiments"])
    assert experiment["name"] == "short"
    for data, steps, workspace in ((baseline["data"], 30, played), (experiment["data"], 4, tried)):
        assert data["params"]["params.yaml"]["data"]["smoke"]["stage3"]["steps"] == steps
        shown, figures = (
            data["metrics"]["metrics/evaluate.json"]["data"],
            workspace.read("metrics/evaluate.json"),
        )
        for group in ("subject", *SHARES):
            assert shown[group] == figures[group]
    ours, theirs = (workspace.read("artifacts/stage3.json") for workspace in (played, tried))
    assert ours["weights_sha256"] != theirs["weights_sha256"]


def test_the_plots_of_a_run_are_shown_in_one_page(tried):
    said = tried.run("dvc", "plots", "show")

    page = Path(said.strip().splitlines()[-1].removeprefix("file://"))
    text = page.read_text()
    for plot in (tried.folder / "plots").iterdir():
        shown = [path for path in page.parent.rglob("*.png") if path.read_bytes() == plot.read_bytes()]
        assert shown and shown[0].name in text, plot


def test_the_summary_has_every_figure_that_is_asked_for(played):
    summary = played.read("outputs/demo/summary.json")

    for group, names in SHARES.items():
        for name in names:
            assert 0 <= summary[group][name] <= 1, (group, name)
    assert 0 <= summary["draw_and_describe"] <= 1
    assert summary["draw"]["frechet_ratio"] > 0
    assert summary["tokenizer"]["psnr"] > 0
    assert 0 <= summary["tokenizer"]["judge"] <= 1
    pointers = [
        played.read(f"artifacts/{stage}.json") for stage in ("backbones", "stage1", "stage2", "stage3")
    ]
    assert summary["seconds"]["train"] == pytest.approx(
        sum(pointer["seconds"] for pointer in pointers), abs=0.1
    )
    # Training was done before this demo.
    assert summary["seconds"]["total"] > 0
    assert 2**28 < summary["peak_rss_bytes"] < 4 * 2**30
    assert summary["commit"] == played.commit


def test_the_demo_tells_the_figures_the_reply_and_where_to_look(played):
    words = played.log[played.log.index("reached") :]

    assert "draw.all_right" in words
    assert "answered: " in words
    assert "outputs/demo/summary.json" in words
    assert "mlflow server --backend-store-uri sqlite:///mlflow.db" in words
    drawn = (played.folder / "outputs" / "demo" / "reply.png").exists()
    assert ("reply.png" in words) == drawn


def test_a_second_play_changes_nothing(played):
    before = (played.folder / "outputs" / "demo" / "summary.json").read_bytes()

    log = played.vargpt("demo")

    assert "Running stage" not in log
    assert "is the champion already" in log
    assert (played.folder / "outputs" / "demo" / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("end", "version"), [("outputs/stage3/model", None), ("models:/vargpt@champion", "1")]
)
def test_the_model_can_be_traced_to_data_and_backbones_from_either_end(played, end, version):
    found = json.loads(played.vargpt("lineage", end, "--json").splitlines()[-1])

    assert [link["stage"] for link in found["chain"]] == ["stage3", "stage2", "stage1", "backbones"]
    for link in found["chain"]:
        checks = {check["name"]: check["is_right"] for check in link["checks"]}
        assert checks == dict.fromkeys(("weights", "data pointer", "data", "git commit", "config"), True)
    assert found["record"]["model_version"] == version


def test_every_stage_is_a_version_of_the_trainers_model_and_the_served_one_is_made_from_the_last(played):
    client = MlflowClient(f"sqlite:///{played.folder}/mlflow.db")

    trained = {
        version.tags["vargpt.stage"]: version
        for version in client.search_model_versions("name = 'vargpt-trained'")
    }

    assert sorted(trained) == ["backbones", "stage1", "stage2", "stage3"]
    for stage, version in trained.items():
        pointer = played.read(f"artifacts/{stage}.json")
        assert version.tags["vargpt.weights_sha256"] == pointer["weights_sha256"]
        assert version.run_id == pointer["run_id"]
    served = client.get_model_version_by_alias("vargpt", "champion")
    assert served.tags["vargpt.trained_version"] == f"vargpt-trained/{trained['stage3'].version}"


def test_dvc_tells_the_figures(played):
    shown = played.run(sys.executable, "-m", "dvc", "metrics", "show", "--json")

    figures = json.loads(shown.splitlines()[-1])
    assert "all_right" in str(figures)


def test_a_stage_whose_model_is_gone_runs_again(played):
    shutil.rmtree(played.folder / "outputs" / "stage3" / "model")

    planned = played.run(sys.executable, "-m", "dvc", "repro", "--dry")

    assert "Running stage 'stage3'" in planned
    assert "Running stage 'stage2'" not in planned
    assert "error: " in played.vargpt("promote", codes=(2,))
