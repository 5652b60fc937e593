"""Texts that are gone while the set made from them is there: an error, unless the configuration accepts it.

A set goes by the content of its texts. Where these cannot be looked at, whether it still belongs to them is not known; and made
anew without those that are gone it would be of less text than was meant. Only a stage on another machine, which has the shards
alone, has a reason to go on: `missing_inputs: accept`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slmctl.config.data import SourceConfig
from slmctl.corpus.source_files import MEND, files_of, look_for
from slmctl.corpus.source_identity import reading_of
from slmctl.corpus.unreadable import LISTED, one_message
from slmctl.system.console import say
from slmctl.system.errors import InputError
from slmctl.system.hashes import HashCache
from slmctl.system.storage import is_url
from slmctl.workspace.folders import Folders
from slmctl.workspace.means import SETS

Inputs = dict[str, Any]
Texts = dict[str, list[SourceConfig]]
"""Sources by the key under which a record holds what they were."""


def refuse_unreadable(sets: Texts, made: Callable[[str], bool]) -> None:
    """Raises `InputError` that names, of all sets at once, each file that is absent or cannot be read. `made` tells of a set
    whether it is there."""
    problems, left = [], []
    for name, sources in sets.items():
        for i, source in enumerate(sources):
            key = f"data.{name.replace('/', '.')}" + (f".{i}" if len(sources) > 1 else "")
            found = [f"{key}: {p}" for p in look_for(source)[1]]
            problems += found
            left += [f"tokens/{name}"] * bool(found and made(name))
    if problems:
        verb = "was" if len(set(left)) == 1 else "were"
        sets_left = f" {', '.join(dict.fromkeys(left))} {verb} made from texts that are gone. {ACCEPT}" if left else ""
        raise InputError(one_message(problems, MEND + sets_left))


ACCEPT = "On a machine that has the shards alone, give -o missing_inputs=accept to go on with them as they are."


class InputsAsRecorded:
    """What a result was made from, as far as that can be told here, where some of its texts are gone."""

    def __init__(self, inputs: Inputs, why: str) -> None:
        self.inputs, self.why = inputs, why


def inputs_here(
    folders: Folders, label: str, made: Inputs | None, look: Callable[[], Inputs], texts: Texts
) -> Inputs | InputsAsRecorded:
    """What a result made from texts depends on, as `look` finds it on this machine.

    Where texts that it was `made` from (None: it is not there) are gone, and the configuration accepts that: the contents it was
    made from, under the present settings. Raises `InputError` where it does not, and as `look` does.
    """
    try:
        now = look()
        place = str(folders.store / label if label.startswith(SETS) else folders.root / label)
        found = [which_are_gone(made.get(k), now[k], texts[k], folders.hashes, place) for k in texts if made and k in now]
        why = next(filter(None, found), None)
    except InputError as e:
        if made is None:
            raise
        now, why = {}, str(e).removesuffix(MEND).strip()
    if why is None or made is None:
        return now
    if folders.config.missing_inputs == "stop":
        raise InputError(f"{label} was made from texts that are gone: {why}\nMend the path in the configuration. {ACCEPT}")
    if label not in folders.noted:
        say(f"note: {label}: texts that it was made from are gone, which missing_inputs accepts ({why})")
        folders.noted.add(label)
    return InputsAsRecorded({k: _assumed(made.get(k), sources) for k, sources in texts.items()}, why)


def which_are_gone(made: Any, now: list[Inputs], sources: list[SourceConfig], hashes: HashCache, place: str) -> str | None:
    """Which files that a result, which lies at `place`, was made from are gone, where all that are found were among them; None
    where none is, where others have come, and where the configuration just asks for fewer: then they still lie beside those that
    are found."""
    if not isinstance(made, list) or len(made) != len(now):
        return None
    gone: Counter[str] = Counter()
    for was, found in zip(made, now, strict=True):
        (what, before), (still, after) = _contents(was), _contents(found)
        if what != still or after - before:
            return None
        gone += before - after
    if not gone:
        return None
    asked = {Path(f).resolve() for source in sources if source.hub is None for f in files_of(source) if not is_url(f)}
    folders = {f.parent for f in asked}
    names: list[str] = []
    for digest, count in gone.items():
        places = [Path(path) for path, known in hashes.known.items() if known[2] == digest]
        left_out = [p for p in places if p not in asked and p.parent in folders and p.exists()]
        away = [str(p) for p in places if not p.exists()]
        names += [*away, *[f"one with the content {digest[:12]}…"] * count][: max(0, count - len(left_out))]
    if not names:
        return None
    of = sum(_contents(was)[1].total() for was in made)
    how_many = f"{len(names)} of {of} files {'is' if len(names) == 1 else 'are'} not there any more"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{how_many}: {', '.join(sorted(names)[:LISTED])}{more}. (To make it anew without them, move {place} away.)"


def _contents(source: Inputs) -> tuple[Any, Counter[str]]:
    """Of a source's record: which kind it is, of a dataset which one, and the hashes of its files."""
    hub = source.get("hub")
    if hub is None:
        return "files", Counter(source.get("content", ()))
    return {k: v for k, v in hub.items() if k != "files"}, Counter(hub.get("files", ()))


def fewer_than_made(made: Any, sources: list[SourceConfig]) -> str | None:
    """As `which_are_gone`, by number, where hashing what is found would take long."""
    for was, source in zip(made or [], sources, strict=False):
        if source.hub is None and len(files_of(source)) < len(was.get("content", ())):
            found = f"{len(files_of(source))} of the {len(was['content'])} files"
            return f"{', '.join(source.path or [])} names {found} that it was made from."
    return None


def _assumed(made: Any, sources: list[SourceConfig]) -> list[Inputs]:
    """A record of sources: the contents that they had, how they are read now."""
    had = made if isinstance(made, list) and len(made) == len(sources) else [{}] * len(sources)
    return [{**was, **reading_of(source)} for was, source in zip(had, sources, strict=True)]
