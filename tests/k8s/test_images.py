"""What can be said of the images without building them."""

import re
from collections.abc import Iterator

import pytest

from tests.k8s.manifests import DOCKERFILE, ROOT


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
