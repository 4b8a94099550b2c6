"""Files made of parameters: the JSON schema of params.yaml, and its values for one size.

`python -m training.params_file OUT` writes the latter; `make schema` the former, params.schema.json beside
this file.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

from model.errors import UserError
from training.params import OVERRIDES, STAGE_DEFAULTS, STAGES, Params, parse_params, values_for_size

SCHEMA = Path(__file__).with_name("params.schema.json")


def write_resolved(source: Path, out: Path) -> None:
    """Write the values of a params.yaml that hold for the size it names, as JSON, for the pipeline to follow.

    What `precision: auto` means is left open: it may differ between the machines of one project.
    """
    values = values_for_size(source.read_text(encoding="utf-8"), None, str(source))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(parse_params(values).model_dump(), indent=1) + "\n", encoding="utf-8")


def json_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml: all parameters, and sections that replace some of them for a size."""
    schema = Params.model_json_schema()
    partial = {f"{name}Override": _without_required(section) for name, section in schema["$defs"].items()}
    override = _without_required({key: value for key, value in schema.items() if key != "$defs"})
    schema["$defs"] |= partial
    some_of_a_stage = {"$ref": "#/$defs/StageParamsOverride"}
    # What a stage does not say, stage_defaults says.
    schema["properties"] |= dict.fromkeys((STAGE_DEFAULTS, *STAGES), some_of_a_stage)
    override["properties"][STAGE_DEFAULTS] = some_of_a_stage
    for name in OVERRIDES:
        schema["properties"][name] = override | {"title": name, "description": f"other values for {name}"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_required(section: dict[str, Any]) -> dict[str, Any]:
    copied = copy.deepcopy(section)
    copied.pop("required", None)
    return _with_override_references(copied)


def _with_override_references(node: Any) -> Any:
    # Items of a list are given whole.
    if isinstance(node, dict):
        return {
            key: f"{value}Override"
            if key == "$ref" and not value.endswith("DatasetParams")
            else _with_override_references(value)
            for key, value in node.items()
        }
    return [_with_override_references(part) for part in node] if isinstance(node, list) else node


def write_json_schema(path: Path = SCHEMA) -> None:
    """Generate the schema file anew: `make schema`."""
    path.write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        write_resolved(Path("params.yaml"), Path(sys.argv[1]))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
