"""What docs/architecture.md says of the code is what the code has."""

import re
from dataclasses import fields
from pathlib import Path

from ardistill.families import Family

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()


def test_the_table_of_a_familys_fields_is_whole():
    table = PAGE[PAGE.index("| field |") : PAGE.index("## Add a target")]
    shown = {
        name
        for line in table.splitlines()
        for name in re.findall(r"`(\w+)`", line.split("|")[1] if "|" in line else "")
    }
    assert shown == {x.name for x in fields(Family)}
