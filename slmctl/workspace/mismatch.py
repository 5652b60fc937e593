"""Things that do not belong together: refused by the names of the fields in which they differ, unless these are accepted."""

from __future__ import annotations

import json
from typing import Any

from slmctl.store.manifest import differences
from slmctl.system.console import warn
from slmctl.system.errors import MismatchError
from slmctl.workspace.means import SETS

_NEVER_ACCEPTED = {"seq_len", "intra_document_mask", "bos"}
"""Of sets: where these differ, losses are of other predictions than those that are trained, or prompts begin otherwise than
rows."""


def refuse(
    label: str, found: dict[str, Any], wanted: dict[str, Any], advice: str, accept: list[str], accepted: list[str]
) -> None:
    """Raises `MismatchError` naming each differing field, what was found and what was wanted. A field that `accept` names is let
    through with a warning, and added to `accepted`."""
    differ = {d: d.split(": found ", 1)[0] for d in (f"{label}:{d}" for d in differences(found, wanted))}
    never = _NEVER_ACCEPTED if label.startswith(SETS) else ()
    offered = {d: field for d, field in differ.items() if field.rpartition(":")[2].partition(".")[0] not in never}
    through = {d for d, field in offered.items() if field in accept}
    for line in sorted(through):
        warn(f"accept_mismatch lets through {line}")
        if line not in accepted:
            accepted.append(line)
    if left := [d for d in differ if d not in through]:
        listing = "\n".join(f"  {d}" for d in left)
        names = json.dumps([*accept, *[differ[d] for d in left]])
        offer = f" To go on with it as it is, give -o 'accept_mismatch={names}'." if set(left) <= set(offered) else ""
        raise MismatchError(f"{label} does not match:\n{listing}\n{advice}{offer}")
