"""JSON of users' files."""

import json
from typing import Any

from model.errors import UserError


def parse_json(text: bytes | str) -> Any:
    """The value. UserError when it is no JSON, or nested deeper than it can be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError("not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"not JSON: {error}") from None
