"""The flow of `launch/pipeline.py`: which stages, then each brought to work behind its parents (`launch/plans.py`).

exit code 0: all is done, at work or planned; 2: something must be mended first, and what does not depend on it was
submitted all the same; else, on one machine, that of the stage that failed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from rich.markup import escape

from experiments import plan
from experiments.plan import Lineage, Standing
from experiments.registry import Registry, default_home
from launch import plans, submit
from launch.console import Console, print_error
from launch.parents import IMPORT_COMMAND
from launch.pipeline_arguments import Arguments, parse_pipeline
from launch.proposal import NO_PROMPTS, check_batch, propose
from launch.stages import STAGES
from slurm import plan_state

POLL_S = 5.0
console = Console(highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Bring a chain to work; return the exit code."""
    return submit.guarded(lambda: _run(parse_pipeline(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: Arguments) -> int:
    registry = Registry(default_home())
    arguments = _with_store(registry, arguments)
    for stage, why in arguments.left_out.items():
        if why == "no --sample.prompts":
            say(f"{stage}: left out; {NO_PROMPTS}")
    for stage, mine in arguments.of_stage.items():
        check_batch(STAGES[stage], mine)  # of all, before anything is begun
    slurm = arguments.placement.resolved_cluster() == "slurm"
    if arguments.options.dry_run:
        return _dry_run(registry, arguments, slurm=slurm)
    registry.check_writable()
    if slurm:
        return _submit(registry, arguments)
    if arguments.options.wait == "no":
        raise ValueError("--wait no: without Slurm the pipeline runs stage after stage and has to stay")
    return _work(registry, arguments)


def say(text: str) -> None:
    """Print a line."""
    console.print(escape(text))


def _with_store(registry: Registry, arguments: Arguments) -> Arguments:
    """Return the arguments with a data root, where the store that the recipe means knows its own."""
    if arguments.data_root or "preprocess" not in arguments.of_stage:
        return arguments
    store = plans.store_run(registry, arguments.recipe)
    if store is None:
        return arguments  # preprocess says what is missing
    if store.is_done():
        of_stage = {stage: one for stage, one in arguments.of_stage.items() if stage != "preprocess"}
        return replace(
            arguments, of_stage=of_stage, left_out=arguments.left_out | {"preprocess": f"{store.name} is done"}
        )  # fmt: skip
    inputs = store.spec.inputs
    if IMPORT_COMMAND in inputs:
        raise ValueError(f"{store.name} is not finished; go on with it: {inputs[IMPORT_COMMAND]}")
    mine = replace(arguments.of_stage["preprocess"], data_root=inputs["data_root"])
    return replace(arguments, data_root=inputs["data_root"], of_stage=arguments.of_stage | {"preprocess": mine})


def _links(registry: Registry, arguments: Arguments) -> Lineage:
    """Return what leads to each stage of the chain."""
    if "preprocess" in arguments.parents:
        store = registry.find(arguments.parents["preprocess"], "preprocess").id
    elif "preprocess" in arguments.of_stage:
        store = propose(registry, STAGES["preprocess"], arguments.of_stage["preprocess"]).spec.id
    else:
        found = plans.store_run(registry, arguments.recipe)
        if found is None:
            raise ValueError(f"no preprocess run matches this recipe in {registry.home}; let the pipeline make it too")
        store = found.id
    named = {stage: registry.find(given, stage).id for stage, given in arguments.parents.items()}
    return plans.chain_lineage(arguments.recipe, tuple(arguments.of_stage), store, named)


def _submit(registry: Registry, arguments: Arguments) -> int:
    links = _links(registry, arguments)
    known: dict[str, Standing] = {}
    failed = False
    for stage, mine in arguments.of_stage.items():
        try:
            brought = plans.bring(registry, STAGES[stage], mine, links, say, known)
        except ValueError as error:
            print_error(error)
            failed = True
            continue
        say(brought.words())
        if brought.jobs:
            planned = brought.action == "planned"
            known[stage] = Standing(stage=stage, name=brought.name, state="alive", jobs=brought.jobs, planned=planned)
    say(f"the same command goes on from here, whatever happens: {arguments.typed}")
    if arguments.options.wait == "yes" and not failed:
        return _wait(registry, arguments, links)
    return submit.USER_ERROR if failed else 0


def _wait(registry: Registry, arguments: Arguments, links: Lineage) -> int:
    """Say what changes until nothing of the chain is at work any more."""
    told: dict[str, str] = {}
    while True:
        found = plan_state.look(registry, links)
        for stage in arguments.of_stage:
            one = found[stage]
            now = f"{one.name}: {one.reason or one.state}"
            if told.get(stage) != now:
                told[stage] = now
                say(now)
        states = {found[stage].state for stage in arguments.of_stage}
        if states == {"done"}:
            return 0
        if "alive" not in states and "unknown" not in states:
            return 1
        time.sleep(POLL_S)


def _work(registry: Registry, arguments: Arguments) -> int:
    """Run the chain here, stage after stage."""
    links = _links(registry, arguments)
    for stage, mine in arguments.of_stage.items():
        parents = plan_state.parents_of(registry, links, stage)
        verdict = plan.verdict(parents)
        if verdict.action != "go":
            raise ValueError(f"{stage} cannot start: {verdict.reason}")
        roles = map(plan.role_of, links[stage].parents)
        named = {role: parent.pin.id for role, parent in zip(roles, parents, strict=True) if parent.pin is not None}
        code = submit.launch(STAGES[stage], replace(mine, parents=named, options=replace(mine.options, wait="yes")))
        if code or plan_state.look(registry, links)[stage].state != "done":
            print(f"the pipeline stopped at {stage}; mend the cause, then: {arguments.typed}", file=sys.stderr)
            return code or 1
    return 0


def _dry_run(registry: Registry, arguments: Arguments, *, slurm: bool) -> int:
    """Print what would become of each stage."""
    links = _links(registry, arguments)
    known: dict[str, Standing] = {}
    for stage in arguments.of_stage:
        words, verdict = plans.would(registry, STAGES[stage], links, known, slurm=slurm)
        say(words)
        if verdict.action in ("go", "wait") and stage not in known:
            known[stage] = Standing(stage=stage, name=stage, state="alive", jobs=("to come",))
    return 0
