"""Imports point one way, as the layout promises; what starts on a login node never loads torch."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOP = ("dalle2_video", "experiments", "slurm", "launch", "tools", "tests")
PRODUCT = ("dalle2_video", "experiments", "slurm", "launch")


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {
    module_name(path): ast.parse(path.read_text())
    for folder in TOP
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
}


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports anywhere in its text; a `from` import names the module itself where it takes one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, which hides the direction"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in TREES else node.module


GRAPH = {module: set(imported(module, tree)) for module, tree in TREES.items()}


def inside(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


def offences(folder: str, *forbidden: str) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        if inside(module, folder)
        for target in sorted(targets)
        if any(inside(target, name) for name in forbidden)
    ]


def test_the_graph_is_not_empty() -> None:
    assert len([module for module in TREES if inside(module, "dalle2_video")]) > 30
    assert "slurm.training_job" in GRAPH["slurm.job"]
    assert "dalle2_video.training.checkpoint" in GRAPH["dalle2_video.training.loop"]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("dalle2_video", ("experiments", "slurm", "launch", "tools", "tests")),
        ("slurm", ("launch", "tools", "tests")),
        ("launch", ("tools", "tests")),
        ("tools", ("tests",)),
    ],
)
def test_top_level_folders_import_only_what_lies_below_them(folder: str, forbidden: tuple[str, ...]) -> None:
    assert offences(folder, *forbidden) == []


def test_the_registry_imports_nothing_but_itself_and_the_reading_of_json_and_recipes_only_the_config() -> None:
    assert GRAPH["dalle2_video.json_file"].isdisjoint(TREES)
    for module in (name for name in GRAPH if inside(name, "experiments")):
        ours = {target for target in GRAPH[module] if target.split(".")[0] in TOP}
        recipe = module.startswith("experiments.recipes.")
        configs = {"dalle2_video.config", "dalle2_video.data_config", "experiments.recipes"}
        allowed = configs if recipe else {"experiments", "dalle2_video.json_file"}
        assert [target for target in ours if not any(inside(target, name) for name in allowed)] == [], module


def test_science_and_machines_meet_in_what_runs_on_a_node_alone() -> None:
    # A process has to take note of signals from its start on, before what it works with is imported.
    assert offences("slurm.job", "dalle2_video") == ["slurm.job imports dalle2_video.training.stop"]
    meeting = {line.split()[0] for line in offences("slurm", "dalle2_video")} - {"slurm.job"}
    assert meeting == {"slurm.training_job", "slurm.array_job", "slurm.parent_exports"}
    users = {module for module, targets in GRAPH.items() if targets & meeting and module.split(".")[0] in PRODUCT}
    assert users - meeting == {"slurm.job"}


LAYERS = {
    "models": (),
    "diffusion": (),
    "data": (),
    # Retrieval figures are plain NumPy over embeddings; the rest of evaluation judges what stages have trained.
    "stages": ("models", "diffusion", "data", "evaluation.retrieval"),
    "training": ("models", "diffusion", "data", "stages"),
    "generation": ("models", "diffusion", "data", "stages"),
    "evaluation": ("models", "diffusion", "data", "stages", "generation"),
}
"""What each folder of dalle2_video may import, beside itself and the single modules next to these folders."""
SINGLE = [name for name in TREES if name.count(".") == 1 and inside(name, "dalle2_video") and name[13:] not in LAYERS]


def test_every_folder_of_the_science_has_its_layer() -> None:
    folders = {name.split(".")[1] for name in GRAPH if name.startswith("dalle2_video.") and name.count(".") == 2}
    assert folders <= LAYERS.keys()
    assert "dalle2_video.config" in SINGLE


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_the_science_import_only_lower_ones(layer: str) -> None:
    allowed = [f"dalle2_video.{name}" for name in (layer, *LAYERS[layer])]
    for module in (name for name in GRAPH if inside(name, f"dalle2_video.{layer}")):
        ours = [target for target in GRAPH[module] if inside(target, "dalle2_video") and target not in SINGLE]
        assert [target for target in ours if not any(inside(target, name) for name in allowed)] == [], module


@pytest.mark.parametrize("module", SINGLE)
def test_single_modules_of_the_science_import_no_layer(module: str) -> None:
    assert [target for target in GRAPH[module] if inside(target, "dalle2_video") and target not in SINGLE] == []


def test_there_is_no_circle() -> None:
    circle: list[str] = []
    try:
        graphlib.TopologicalSorter(GRAPH).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert circle == []


@pytest.mark.parametrize(
    ("package", "owners"), [("submitit", {"slurm.executor"}), ("deepspeed", {"dalle2_video.training"})]
)
def test_one_place_imports_what_only_it_should_know(package: str, owners: set[str]) -> None:
    users = [
        module
        for module, targets in GRAPH.items()
        if module.split(".")[0] in PRODUCT and any(inside(target, package) for target in targets)
    ]
    assert users
    assert [user for user in users if not any(inside(user, owner) for owner in owners)] == []


MOVES_OF_OS = {"link", "rename", "renames", "replace", "fsync", "fdatasync", "symlink"}


def moves(tree: ast.AST) -> list[int]:
    """Return the lines that link, rename or fsync: by `os`, by `shutil.move` or as a method of a path."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            lines += [node.lineno for alias in node.names if alias.name in MOVES_OF_OS | {"move"}]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, node.func.value
        base = owner.id if isinstance(owner, ast.Name) else ""
        by_module = (base == "os" and name in MOVES_OF_OS) or (base, name) == ("shutil", "move")
        # str.replace takes two texts and dataclasses.replace takes keywords: one argument alone is a path's.
        by_path = name in ("rename", "hardlink_to", "symlink_to") or (
            name == "replace" and len(node.args) == 1 and not node.keywords
        )
        if by_module or by_path:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "code",
    [
        "os.link(a, b)",
        "os.replace(a, b)",
        "os.fsync(3)",
        "a.rename(b)",
        "(a / 'c').replace(b)",
        "from os import rename",
    ],
)
def test_a_move_of_a_file_is_recognised(code: str) -> None:
    assert moves(ast.parse(code)) == [1]


@pytest.mark.parametrize("code", ["'a'.replace('b', 'c')", "dataclasses.replace(a, b=1)", "os.listdir(a)"])
def test_what_is_no_move_of_a_file_is_let_pass(code: str) -> None:
    assert moves(ast.parse(code)) == []


def test_one_file_links_and_renames_and_one_more_fsyncs() -> None:
    movers = {name for name, tree in TREES.items() if name.split(".")[0] in PRODUCT and moves(tree)}
    # The second makes a rank's own file durable while it is written, and moves nothing.
    assert movers == {"experiments.files", "dalle2_video.training.durable_file"}


@pytest.mark.parametrize(
    "module",
    [
        "launch.submit",
        "launch.chain",
        "launch.sweeping",
        "slurm.planned_job",
        "tools.runs",
        "tools.doctor",
        "tools.report",
        "tools.verify_store",
        "experiments.recipes.tiny",
    ],
)
def test_what_starts_on_a_login_node_does_not_load_torch(module: str) -> None:
    code = (
        f"import {module}, sys; print([name for name in sys.modules if name.split('.')[0] in {{'torch', 'deepspeed'}}])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert answer.stdout.strip() == "[]"


def test_a_training_loads_nothing_that_no_step_needs() -> None:
    needless = {"zarr", "av", "submitit", "wandb", "transformers", "sklearn", "jinja2", "PIL", "h5py", "tyro", "rich"}
    code = f"import slurm.training_job, sys; print({needless!r} & {{name.split('.')[0] for name in sys.modules}})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert answer.stdout.strip().splitlines()[-1] == "set()"


@pytest.mark.parametrize("script", [*sorted((REPOSITORY / "launch").glob("*.py")), REPOSITORY / "tools/runs.py"])
def test_a_script_makes_the_repository_the_first_place_to_look_before_it_imports_from_it(script: Path) -> None:
    tree = TREES[module_name(script)]
    if not any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body):
        return  # a module that the scripts share
    places = [
        n for n, node in enumerate(tree.body) if "sys.path[0] = str(Path(__file__).resolve()" in ast.unparse(node)
    ]
    ours = [n for n, node in enumerate(tree.body) if any(t.split(".")[0] in TOP for t in imported("", node))]
    assert places and ours and places[0] < ours[0]
