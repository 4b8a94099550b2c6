"""YAML with the booleans and numbers of version 1.2, which is what editors, DVC and people write.

PyYAML reads version 1.1, for which a bare `no` is false and `5e-5` is text.
"""

import re
from typing import Any, ClassVar

import yaml

_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"


class _CoreLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar = {
        letter: [(tag, pattern) for tag, pattern in found if tag not in (_BOOL, _FLOAT)]
        for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_CoreLoader.add_implicit_resolver(_BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_CoreLoader.add_implicit_resolver(
    _FLOAT,
    # Whole numbers are found before.
    re.compile(r"[-+]?((\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The value of a document (YAML 1.2, section 10.3). Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_CoreLoader)
