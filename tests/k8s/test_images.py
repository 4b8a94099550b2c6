"""What can be said of the images without building them; at the end, what a cluster says of built ones."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.cluster import IMAGES, Cluster, about_images, build, idle_pod, new_namespace
from tests.k8s.manifests import DOCKERFILE, K8S, ROOT

OWN = [K8S / "images" / f"{name}.Dockerfile" for name in ("mlflow", "postgres", "haproxy")]
# Of an image for CPUs, unpacked.
MAX_BYTES = 2.5e9
SIZE_AND_FACTS = "du -sxB1 / 2>/dev/null | cut -f1; echo $GIT_COMMIT $GIT_DIRTY"


def copied_into_the_image() -> Iterator[tuple[str, str]]:
    """What of the repository goes into the image's working folder, and where there."""
    for sources, target in re.findall(
        r"^COPY (?!requirements)(.+) (\S+)$", DOCKERFILE.read_text(), re.MULTILINE
    ):
        yield from ((source, target) for source in sources.split())


def test_the_image_installs_locked_dependencies_before_it_copies_code():
    lines = DOCKERFILE.read_text().splitlines()
    installs = [number for number, line in enumerate(lines) if "uv pip" in line]
    copies = [number for number, line in enumerate(lines) if re.match(r"COPY (model|training|params)", line)]

    assert "ARG BASE=python:3.11-slim" in lines[: installs[0]]
    assert max(installs) < min(copies)
    for line in lines:
        assert not re.search(r"pip (install|sync)", line) or "--require-hashes" in line, line


@pytest.mark.parametrize("torch", ["cpu", "cuda"])
def test_the_image_can_be_built_for_either_build_of_torch(torch):
    locks = re.findall(r"^COPY (requirements/\S+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)

    assert len(set(locks)) == 4
    for lock in locks:
        assert (ROOT / lock.replace("${TORCH}", torch)).is_file(), lock


@pytest.mark.parametrize("target", ["training", "packaging", "serving"])
def test_another_commit_is_another_image_even_when_no_file_has_changed(target):
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    stage = re.search(rf"^FROM \S+ AS {target}\n(.+?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL)[1]
    names = [line.split()[0] for line in stage.splitlines() if line and not line.startswith(("#", " "))]
    after_the_code = names[len(names) - names[::-1].index("COPY") :]

    assert after_the_code[:6] == ["ARG", "ARG", "ARG", "RUN", "ENV", "LABEL"]


@pytest.mark.parametrize("file", OWN, ids=lambda path: path.stem)
def test_so_it_is_for_the_images_without_our_code(file):
    names = re.findall(r"^([A-Z]+) ", file.read_text().replace("\\\n", " "), re.MULTILINE)

    assert names[-7:-2] == ["ARG", "ARG", "ARG", "RUN", "LABEL"]


@pytest.mark.parametrize("file", [DOCKERFILE, *OWN], ids=lambda path: path.name)
def test_every_image_is_labelled_with_its_commit_changes_and_locks(file):
    text = file.read_text().replace("\\\n", " ")
    labels = re.findall(r"^LABEL (.+)$", text, re.MULTILINE)

    assert len(labels) == len(re.findall(r"^USER ", text, re.MULTILINE))
    for label in labels:
        for wanted in (
            "org.opencontainers.image.revision=${GIT_COMMIT}",
            "io.vargpt.git-dirty=${GIT_DIRTY}",
            "io.vargpt.lock-sha256=${LOCK_SHA256}",
        ):
            assert wanted in label.split()


def test_build_arguments_tell_the_commit_whether_the_code_was_changed_and_the_locks(tmp_path):
    for name in (
        "k8s/images/about.sh",
        "requirements/base-cpu.txt",
        "requirements/mlflow.txt",
        "params.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def told() -> dict[str, str]:
        command = ["sh", str(tmp_path / "k8s" / "images" / "about.sh"), "cpu"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert said[::2] == ["--build-arg"] * 3
        return dict(argument.split("=", 1) for argument in said[1::2])

    without_history = told()
    assert (without_history["GIT_COMMIT"], without_history["GIT_DIRTY"]) == ("unknown", "unknown")
    head = commit_all(tmp_path)
    clean = told()
    assert (clean["GIT_COMMIT"], clean["GIT_DIRTY"]) == (head, "false")
    (tmp_path / "params.yaml").write_text("size: other")
    (tmp_path / "requirements" / "base-cpu.txt").write_text("other")
    changed = told()
    assert (changed["GIT_COMMIT"], changed["GIT_DIRTY"]) == (head, "true")
    assert changed["LOCK_SHA256"] != clean["LOCK_SHA256"] and len(clean["LOCK_SHA256"]) == 64


def commit_all(root: Path) -> str:
    """Makes a repository of a folder; its commit."""
    author = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    for arguments in (
        ("init", "-q"),
        ("add", "-A"),
        (*author, "commit", "-qm", "all"),
        ("rev-parse", "HEAD"),
    ):
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    return done.stdout.strip()


def dry_images(*variables: str) -> list[str]:
    """The commands of `make images`, which are not run."""
    command = ["make", "--dry-run", "--no-print-directory", "images", "BUILD=build", *variables]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return re.findall(r"build --file [^;|\n]+", text.replace("\\\n", " "))


def test_base_images_can_be_named_by_digest():
    digests = {"BASE": "python@sha256:1", "DEBIAN_BASE": "debian@sha256:2"}
    ours, mlflow, debian = dry_images(*(f"{name}={value}" for name, value in digests.items()))

    for command, base in ((ours, "BASE"), (mlflow, "BASE"), (debian, "DEBIAN_BASE")):
        assert f"--build-arg BASE={digests[base]}" in command
        assert command.count("BASE=") == 1
    assert not [command for command in dry_images() if "BASE=" in command]


def test_images_share_the_layers_of_their_common_dependencies():
    found = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    of = {name: parent for parent, name in found}

    for target in ("training", "packaging", "serving"):
        chain = [target]
        while chain[-1] in of:
            chain.append(of[chain[-1]])
        assert "base" in chain


def test_the_build_context_holds_what_the_image_copies():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}

    for source, _ in copied_into_the_image():
        assert (ROOT / source).exists(), source
        assert source.startswith("k8s") or {source, source.split("/")[0]} & kept, source
    assert ".dvc" not in kept, "the cache of DVC would get into the build context"


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "packaging", "serving"])
def test_an_image_for_cpus_is_small_and_knows_its_code(running_cluster: Cluster, name):
    if running_cluster.script:
        build(running_cluster.script, name)
    pod = idle_pod("image", "images", {}, None)
    pod["spec"]["containers"][0]["image"] = IMAGES[f"vargpt-{name}"]
    with new_namespace(running_cluster, "images", pod) as cluster:
        cluster.run("wait", "--for=condition=Ready", "pod/image", "--timeout", "120s")
        size, commit, is_dirty = (
            cluster.run("exec", "image", "--", "sh", "-c", SIZE_AND_FACTS).decode().split()
        )

    assert int(size) <= MAX_BYTES
    if running_cluster.script:
        assert {f"GIT_COMMIT={commit}", f"GIT_DIRTY={is_dirty}"} <= set(about_images())
