"""Laws of published names: each has one of ours, or a reason why it has none."""

import pytest

from model.errors import UserError
from model.published import vargpt_names


def test_a_name_of_no_part_is_refused_with_the_known_parts():
    with pytest.raises(UserError, match=r"^extra\.weight belongs to no part .*vae_local"):
        vargpt_names(["extra.weight"])
