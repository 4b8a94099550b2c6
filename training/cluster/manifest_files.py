"""Which file below k8s/ holds which rendered objects, and their text."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from training.cluster.images import image_names
from training.cluster.jobs import JobOptions, render_job, render_runtime
from training.cluster.pipeline_jobs import render_backbones, render_release
from training.params import Params, load_params

STAGES = ("stage1", "stage2", "stage3")
LOCAL_QUEUE = "training"
HEADER = """\
# {title}
# Rendered by `make manifests` from params.yaml (section cluster), k8s/images/kustomization.yaml and
# training/cluster: change those, not this file.
"""
WIDTH = 110
# Said above the first line that begins so, for people who read the manifest.
COMMENTS = {
    "nprocPerNode:": "The operator's own choice would be one process for each core.",
    "elasticPolicy:": "Without a master there is no init container, which the namespace would refuse.",
    "runPolicy:": "The job has succeeded when one worker has; none may keep its GPUs after that.",
    "restartPolicy: ExitCode": "What exit codes mean, and when to give up, is training/launching's business.",
    "terminationGracePeriodSeconds:": "Time to finish a step and save.",
    "- {name: NCCL_DEBUG": "Of a collective that hangs, each process writes which ones it took part in.",
    "- {name: shm, mountPath": "Processes and loaders of a node exchange tensors here.",
    "podFailurePolicy:": "A mistake or a closed gate is final; a node that goes is not counted.",
    "publishNotReadyAddresses:": "Workers meet before they are ready.",
}


def rendered_files(root: Path) -> dict[Path, str]:
    """The text of every rendered manifest, by its path below the repository `root`."""
    images = image_names(root)
    data = yaml.safe_load((root / "data.dvc").read_text(encoding="utf-8"))["outs"][0]["md5"]
    options = JobOptions(image=images["vargpt-training"], data_md5=data)
    packaging = images["vargpt-packaging"]
    # Committed jobs take their size from the platform's settings where it is CPU-sized: smoke or tiny.
    large, small = (load_params(root / "params.yaml", size) for size in ("7b", "tiny"))
    k8s, tiny = Path("k8s"), replace(options, size="$(SIZE)")
    files: dict[Path, tuple[str, list[dict[str, Any]]]] = {}
    for folder, params, given in ((k8s, large, options), (k8s / "overlays" / "tiny", small, tiny)):
        files |= _pipeline(folder, params, given, packaging)
    overlays = k8s / "overlays"
    for name, given in (
        ("kueue", replace(options, queue=LOCAL_QUEUE)),
        ("rdma", replace(options, rdma=True)),
        ("trainjob", replace(options, api="trainjob")),
    ):
        files |= _stages(overlays / name, large, given)
    for folder, params, given in (
        (overlays / "trainjob", large, options),
        (overlays / "tiny" / "trainjob", small, tiny),
    ):
        title = "The TrainingRuntime that TrainJobs name."
        files[folder / "runtime.yaml"] = (title, [render_runtime(params, replace(given, api="trainjob"))])
    files |= _stages(overlays / "tiny" / "trainjob", small, replace(tiny, api="trainjob"))
    return {path: _text(title, objects) for path, (title, objects) in files.items()}


def changed_files(root: Path) -> Iterator[Path]:
    """The rendered files that are missing or differ from their rendering."""
    for path, text in rendered_files(root).items():
        target = root / path
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            yield path


def write_files(root: Path) -> list[Path]:
    """Write every rendered file; those that have changed."""
    changed, texts = list(changed_files(root)), rendered_files(root)
    for path in changed:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(texts[path], encoding="utf-8")
    return changed


def _pipeline(
    folder: Path, params: Params, options: JobOptions, packaging_image: str
) -> dict[Path, tuple[str, list[dict[str, Any]]]]:
    """All jobs of the pipeline at one size."""
    before = "Data, prepared data and backbones on the volumes. Once before stage 1."
    after = "Measures the model of stage 3, makes it champion if it passes the gates, packages the champion."
    return {
        folder / "backbones.yaml": (before, [render_backbones(params, options)]),
        **_stages(folder, params, options),
        folder / "pipeline.yaml": (after, [render_release(params, options, packaging_image)]),
    }


def _stages(
    folder: Path, params: Params, options: JobOptions
) -> dict[Path, tuple[str, list[dict[str, Any]]]]:
    """The three stages, each in a file of its own."""
    kind = "TrainJob" if options.api == "trainjob" else "PyTorchJob"
    each = f"{params.cluster.gpus} GPUs each" if params.cluster.gpus else "one CPU process each"
    workers = f"{params.cluster.nodes} workers with {each}"
    return {
        folder / f"{stage}.yaml": (
            f"{stage.replace('stage', 'Stage ')} as a {kind}: {workers}, size {options.size or params.size}.",
            [render_job(stage, params, options)],
        )
        for stage in STAGES
    }


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, with sequences indented and several lines as a block."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        # Short mappings stand in one line.
        node.flow_style = node.flow_style and len(str(mapping)) <= 90
        return node

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _text(title: str, objects: list[dict[str, Any]]) -> str:
    """A header, then the objects as YAML documents."""
    bodies = [
        yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=WIDTH, default_flow_style=None)
        for item in objects
    ]
    return HEADER.format(title=title) + "---\n".join(map(_commented, bodies))


def _commented(text: str) -> str:
    """YAML text with comments."""
    lines, left = [], dict(COMMENTS)
    for line in text.splitlines():
        content = line.lstrip()
        for beginning in [known for known in left if content.startswith(known)]:
            lines.append(f"{line[: len(line) - len(content)]}# {left.pop(beginning)}")
        lines.append(line)
    return "\n".join(lines) + "\n"
