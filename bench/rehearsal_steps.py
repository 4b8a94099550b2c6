"""The steps of the rehearsal that are no service, one a process: `python -m bench.rehearsal_steps STEP
FOLDER`.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.published_layout import released_vargpt
from bench.random_checkpoint import RandomWeights, write_folder, write_text_tokenizer
from bench.rehearsal_folder import STAGE, STEPS, Rehearsal
from model.config import PRESETS, preset
from model.manifest import read_manifest
from training.params import Params, load_params

ROOT = Path(__file__).resolve().parent.parent
SIZE, SHORT, NAME = "7b", "7b-short", "vargpt"
# Figures decide nothing here: the model has random weights.
NOT_MEASURED = {"data_md5": None, "prepared_sha256": "", "split": "test", "questions": 0, "drawings": 0}
KIBIBYTE = 1024


def architecture(rehearsal: Rehearsal) -> str:
    """Name of the architecture, which is made known if it is a short one."""
    if rehearsal.layers is None:
        return SIZE
    whole = PRESETS[SIZE]
    sizes = {
        name: whole.get(name, {}) | {"num_hidden_layers": rehearsal.layers}
        for name in ("vision_config", "text_config")
    }
    PRESETS[SHORT] = whole | sizes | {"visual_decoder_config": {"depth": rehearsal.layers}}
    return SHORT


def params_of(rehearsal: Rehearsal) -> Params:
    """Parameters of 7b, with the checkpoint of this rehearsal."""
    params = load_params(ROOT / "params.yaml", SIZE)
    weights = {"vargpt": str(rehearsal.published), "llava": None, "var": None, "tokenizer": None}
    return params.model_copy(
        update={"preset": architecture(rehearsal), "weights": params.weights.model_copy(update=weights)}
    )


def write(rehearsal: Rehearsal) -> dict[str, Any]:
    """Write the checkpoint."""
    config = preset(architecture(rehearsal))
    write_folder(rehearsal.published, released_vargpt(config), RandomWeights(torch.bfloat16))
    write_text_tokenizer(rehearsal.published, config)
    return {}


def import_(rehearsal: Rehearsal) -> dict[str, Any]:
    """Import it as the stage `backbones` does."""
    from training.backbones.import_run import run_import
    from training.registry.stage_folders import StageFolders
    from training.run_context import ImageFacts, RunContext

    folders = StageFolders(STAGE, rehearsal.folder, rehearsal.folder / "outputs", ROOT / "data.dvc")
    context = RunContext(
        tracking_uri=rehearsal.mlflow,
        spool=rehearsal.folder / "spool",
        image=ImageFacts(),
        should_stop=lambda: False,
    )
    imported = run_import(params_of(rehearsal), folders, context)
    sys.stderr.write(imported.report.summary() + "\n")
    report = imported.report
    return {
        "parameters": sum(part.parameters for part in report.parts.values()),
        "bytes": sum(part.bytes for part in report.parts.values()),
        "used": len(report.used),
        "left_out": len(report.left_out),
    }


def verify(rehearsal: Rehearsal) -> dict[str, Any]:
    """Compare every weight with its source, and every file with the manifest."""
    from training.backbones.import_plan import ImportSources
    from training.backbones.import_weights import verify_import

    verify_import(ImportSources(vargpt=rehearsal.published), rehearsal.model_dir)
    return {"files": len(read_manifest(rehearsal.model_dir))}


def register(rehearsal: Rehearsal) -> dict[str, Any]:
    """Register it with MLflow."""
    from model.manifest import manifest_sha256
    from training.registry.lineage import read_lineage
    from training.registry.versions import register

    record = read_lineage(rehearsal.model_dir)
    figures = {"subject": NOT_MEASURED | {"weights_sha256": manifest_sha256(rehearsal.model_dir)}}
    assert record.run_id
    version = register(rehearsal.mlflow, NAME, record.run_id, rehearsal.model_dir, figures, record)
    return {"version": version}


def package(rehearsal: Rehearsal) -> dict[str, Any]:
    """Make a bento of the version that was registered."""
    from mlflow import MlflowClient

    from serving.packaging import LOCKS, package

    client = MlflowClient(rehearsal.mlflow, rehearsal.mlflow)
    version = max(int(found.version) for found in client.search_model_versions(f"name = '{NAME}'"))
    return {"bento_tag": package(rehearsal.mlflow, f"models:/{NAME}/{version}", lock=LOCKS["cpu"])}


FUNCTIONS: dict[str, Callable[[Rehearsal], dict[str, Any]]] = dict(
    zip(STEPS, (write, import_, verify, register, package), strict=True)
)


def main() -> None:
    """Run one step; the last line of the output is a JSON object with its facts."""
    name, folder, *layers = sys.argv[1:]
    facts = FUNCTIONS[name](Rehearsal(Path(folder), int(layers[0]) if layers else None))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE
    usage = {"ru_maxrss_bytes": peak, "cpu_seconds": round(time.process_time(), 1)}
    sys.stdout.write(json.dumps(facts | usage) + "\n")


if __name__ == "__main__":
    main()
