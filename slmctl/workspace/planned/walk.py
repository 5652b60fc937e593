"""What has become of every stage, and what a run would do with it: one look at a pipeline, stage after stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from slmctl.config.pipeline import PipelineConfig
from slmctl.system.errors import SlmError
from slmctl.system.files import read_json
from slmctl.workspace.changes import few
from slmctl.workspace.contamination_report import read_report
from slmctl.workspace.graph import Stage, graph
from slmctl.workspace.identity import Inputs
from slmctl.workspace.means import SETS
from slmctl.workspace.missing_texts import InputsAsRecorded
from slmctl.workspace.planned.decisions import KEPT, Decision, Found, Wanted, decide, differing
from slmctl.workspace.planned.read_only import ReadOnlyWorkspace
from slmctl.workspace.stale import INPUTS, STALE, same_results, strict
from slmctl.workspace.workspace import Workspace

RESULTS, UNDER_WAY = "results.json", "under_way.json"
"""Of eval/: what it has made last, and what says that an evaluation was begun since."""
EvalInputs = Callable[[Workspace], Inputs]
"""What results would be made from, of what is there. Raises `SlmError` where that cannot be told."""


@dataclass
class Walk:
    """A look at a pipeline."""

    looking: ReadOnlyWorkspace
    stages: dict[str, Stage]
    """By label; all that a run makes and keeps by what it was made from."""
    report: Stage
    """What each run writes anew."""
    decisions: dict[str, Decision] = field(default_factory=dict)
    """On those that were walked over."""
    found: dict[str, Found | None] = field(default_factory=dict)
    """What lies in the place of each."""
    problems: list[str] = field(default_factory=list)
    """What would stop a run, as far as it shows on the way."""

    def ready(self, label: str) -> bool:
        """Whether a stage is there, or in stale/, as it is wanted."""
        return self.decisions[label].action in KEPT


def walk(config: PipelineConfig, eval_inputs: EvalInputs) -> Walk:
    """Looks at what is there, and decides on every stage. Raises `ConfigError` where output_dir is another pipeline's."""
    looking = ReadOnlyWorkspace(config)
    stages = graph(looking.config)
    report = stages.pop("report")
    found = Walk(looking, stages, report)
    for label, stage in stages.items():
        decision = _evaluation(found, stage, eval_inputs) if label == "eval" else _stage(found, stage)
        found.decisions[label] = decision
        if label == "eval":
            continue
        if decision.action not in KEPT:
            looking.put(label, None)
        elif decision.action == "taken back":
            looking.put(label, Path(str(decision.place)))
    return found


def _stage(walk: Walk, stage: Stage) -> Decision:
    looking, label, needs = walk.looking, stage.label, stage.needs
    found = walk.found[label] = looking.found(label)
    if label.startswith("tokens/") and (kept := _kept_without_texts(walk, stage, found)) is not None:
        return kept
    stale_possible = (looking.root / STALE).is_dir()
    if found is None and not stale_possible:
        return decide(label, Wanted({}, needs), None, None, walk.decisions)
    try:
        inputs, unknown = looking.wanted(label)
    except SlmError as e:
        if not label.startswith("token"):  # of texts it is told by what names all that is absent
            walk.problems.append(f"{label}: {e}")
        inputs, unknown = {}, str(e)
    inputs = looking.settle(label, inputs, found)
    settled = not unknown and all(walk.ready(d) for d in needs)
    stale = looking.in_stale(label, inputs) if settled and stale_possible else None
    decision = decide(label, Wanted(inputs, needs, unknown), found, stale, walk.decisions)
    if decision.action == "made anew" and label.startswith(SETS) and not looking.moves_aside:
        walk.problems.append(
            f"{looking.store / label} holds a set that was made from other inputs. Give another store_dir, or delete that folder."
        )
    return decision


def _kept_without_texts(walk: Walk, stage: Stage, found: Found | None) -> Decision | None:
    """A set whose texts are gone, where the configuration accepts that; None for any other."""
    workspace, label = walk.looking.workspace, stage.label
    if found is None or workspace.config.missing_inputs == "stop":
        return None
    if any(s.hub and not Path(s.hub).is_dir() for s in workspace.sources(stage.name)):  # which the Hub would be asked for
        return None
    try:
        here = workspace.inputs_here(stage.name, found.inputs)
    except SlmError:  # which is told with the others
        return None
    if not isinstance(here, InputsAsRecorded):
        return None
    wanted = {**workspace.packing_inputs(), **here.inputs}
    if not found.complete or differing(found.inputs or {}, wanted, partly=True):
        walk.problems.append(f"{label} cannot be made as the configuration wants it now: {here.why}")
    return Decision(label, "skipped", ("its texts are gone, which missing_inputs accepts",), place=found.place)


def _evaluation(walk: Walk, stage: Stage, eval_inputs: EvalInputs) -> Decision:
    """eval follows from what it measures: where all of that is there already, from its inputs, and else it is made."""
    looking, workspace = walk.looking, walk.looking.workspace
    folder = workspace.evaluation
    there, work = (folder / RESULTS).is_file(), [d for d in stage.needs if not walk.ready(d)]
    found = walk.found["eval"] = _results_found(folder)
    if not there and (work or not (looking.root / STALE).is_dir()):
        return Decision("eval", "made", after=tuple(work))
    if there and work:
        why = few([f"depends on {d}, which is {walk.decisions[d].action}" for d in work])
        return Decision("eval", "made anew", tuple(why), after=tuple(work))
    told = read_report(looking.root)
    if told is not None and told["overlap"] != workspace.config.eval.contamination_overlap:
        changed = ("eval.contamination_overlap has changed",)
        return Decision("eval", "made anew", changed, changed=changed)
    try:
        inputs = eval_inputs(workspace)
    except SlmError as e:
        walk.problems.append(f"eval: {e}")
        return Decision("eval", "made anew" if there else "made", (str(e),), changed=(str(e),))
    aside = same_results(looking.root, inputs, RESULTS)
    stale = Found(inputs, True, place=str(aside)) if aside is not None else None
    before = Found(found.inputs if found is not None and found.complete else None, True, place=str(folder)) if there else None
    return decide("eval", Wanted(inputs, stage.needs), before, stale, walk.decisions)


def _results_found(folder: Path) -> Found | None:
    """The results that are there, complete unless an evaluation was begun since; or that one alone."""
    there, begun, record = ((folder / name).is_file() for name in (RESULTS, UNDER_WAY, INPUTS))
    if not there and not begun:
        return None
    return Found(strict(read_json(folder / INPUTS)) if record and not begun else None, there and not begun, place=str(folder))
