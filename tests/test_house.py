"""The rules of the house that a machine can hold."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests import processes
from tests.conftest import ROOT, Command

SOURCES = sorted([*ROOT.glob("llama31/**/*.py"), *ROOT.glob("recipes/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])
# Of these packages all; import-linter says the same of most, from what stands in the files.
TORCH_FREE = (
    "config",
    "plan",
    "failures",
    "planner",
    "runs",
    "tokens",
    "data",
    "dialogs",
    "command",
    "slurm",
    "report",
    "sampling",
    "scaling",
    "post_train",
)
TORCH_FREE += ("curate", "sandbox", "synth")
TORCH_FREE += ("evaluate.confidence", "evaluate.tasks", "evaluate.haystack", "evaluate.scorecard", "evaluate.probe")
TORCH_FREE += ("judging.calibration", "judging.embedded", "judging.judge", "judging.ranking", "judging.rejection")
TORCH_FREE += ("judging.scored", "judging.distribution")
# When an API moves, one file changes. A folder owns for the files in it.
OWNERS = {
    "hydra": ("llama31/command/entry.py",),
    "omegaconf": ("llama31/command/entry.py", "llama31/command/written.py"),
    "deepspeed": ("llama31/engine/partition.py", "llama31/engine/zero.py"),
    "megatron.core.parallel_state": ("llama31/parallel/mesh.py",),
    "megatron.core.pipeline_parallel": ("llama31/engine/pipeline.py", "llama31/parallel/cpu.py"),  # the shim patches it
    "megatron.core.models": ("llama31/model/llama.py", "llama31/model/precision.py", "llama31/parallel/cpu.py"),
    "transformer_engine": tuple(f"llama31/model/{name}.py" for name in ("parts", "precision", "kernels", "fused")),
    "tiktoken": ("llama31/tokens/tokenizers.py",),
    "tokenizers": ("llama31/tokens/tokenizers.py",),
    "datasets": ("llama31/tokens/", "llama31/curate/"),
    "pyarrow": ("llama31/tokens/", "llama31/curate/"),
    "datatrove": ("llama31/curate/",),
    "resiliparse": ("llama31/curate/extraction/", "llama31/curate/reading/", "llama31/synth/tools/stand_ins/"),
    "fastwarc": ("llama31/curate/reading/",),
    "fasttext": ("llama31/curate/",),
    "numba": ("llama31/curate/kernels.py",),
    "tldextract": ("llama31/curate/",),
    "wandb": ("llama31/runs/views.py",),
    "matplotlib": ("llama31/runs/plots.py",),
    "safetensors": ("llama31/convert/hf.py",),
    "scipy": ("llama31/scaling/",),
    "sympy": ("llama31/synth/equality/", "llama31/synth/tools/stand_ins/algebra.py"),
    "httpx2": ("llama31/sampling/servers.py", "llama31/synth/tools/services/client.py"),
}
# Whole configs: what a recipe's `main` is given, and what all that train have in common.
MAINS = "".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("recipes/*.py")))
ROOTS = {"Training", *re.findall(r"^def main\(run: config\.(\w+)", MAINS, re.MULTILINE)}
# The benchmark runs the peers it compares with, each in its own process.
EXEMPT = ("benchmarks/peers.py", "benchmarks/post_training.py", "benchmarks/gpu/trainers.py", "benchmarks/gpu/micro.py")
EXEMPT += ("benchmarks/curate_extract.py", "benchmarks/curate_duplicates.py")
EXEMPT += ("benchmarks/curate_scoring.py", "benchmarks/curate_filters.py", "benchmarks/curate_pipeline.py")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every module that a file names in an import, `from a import b` as both `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((name, node.lineno) for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names)))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def report(result: list[str]) -> None:
    assert not result, "\n" + "\n".join(result)


def test_one_owner_per_library() -> None:
    report(
        [
            f"{name_of(path)}:{line} imports {module}; its owner is {' or '.join(owners)}"
            for path in SOURCES
            if name_of(path) not in EXEMPT
            for module, line in imports(parse(path))
            for library, owners in OWNERS.items()
            if (module == library or module.startswith(library + ".")) and not name_of(path).startswith(owners)
        ]
    )


def test_recipes_import_torch_inside_main() -> None:
    heavy = ("torch", "megatron", "deepspeed", "transformers")
    report(
        [
            f"{name_of(path)}:{node.lineno} imports {module} at the top: a wrong key would wait for it"
            for path in SOURCES
            if name_of(path).startswith("recipes/")
            for node in parse(path).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for module, _ in imports(ast.Module([node], []))
            if module.split(".")[0] in heavy
        ]
    )


IMPORTS = """
import importlib, sys
heavy = {"torch", "megatron", "deepspeed", "transformers", "matplotlib", "datasets"}
for name in sys.argv[1:]:
    importlib.import_module(name)
    if found := sorted(heavy & set(sys.modules)):
        sys.exit(f"{name} imports {found}")
"""


def test_torch_free_modules_stay_free(command: Command) -> None:
    names: list[str] = []
    for module in TORCH_FREE:
        files = sorted((ROOT / "llama31" / module).rglob("*.py"))
        inside = (path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files)
        names += [f"llama31.{module}", *(name.removesuffix(".__init__") for name in inside)]
    command("-c", IMPORTS, *names, check=True)


def linted(folder: Path, planted: Mapping[str, str] = {}) -> str:
    """What import-linter says of a copy of the code in which lines were added to files."""
    for name in ("llama31", "recipes", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, line in planted.items():
        (folder / name).write_text((folder / name).read_text() + line + "\n")
    program = Path(sys.executable).with_name("lint-imports")
    return processes.run([str(program), "--no-cache"], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}).stdout


def test_layers_hold_and_a_planted_import_is_found(tmp_path: Path) -> None:
    assert "3 kept, 0 broken" in linted(tmp_path)
    planted = {
        "llama31/plan/schedule.py": "import llama31.train.loop",  # far above it, and torch
        "llama31/tokens/mapped.py": "import llama31.tokens.pack",  # which imports it
    }
    said = linted(tmp_path, planted)
    assert "0 kept, 3 broken" in said
    assert "llama31.plan.schedule -> llama31.train.loop" in said and "No cycles are allowed in llama31.tokens." in said


def test_packages_are_small_and_say_what_they_are() -> None:
    result = []
    for folder in sorted({path.parent for path in (ROOT / "llama31").rglob("*/*.py")}):
        modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        if len(modules) > 10:
            result.append(f"llama31/{folder.name} holds {len(modules)} modules; ten are enough for one purpose")
        record = ast.get_docstring(parse(folder / "__init__.py")) if (folder / "__init__.py").exists() else None
        if folder.name != "config" and not (record and "\nImports: " in record and "\nOffers: " in record):
            result.append(f"llama31/{folder.name}/__init__.py does not say what it owns, imports and offers")
    report(result)


# Who brings sections of a whole config together, and takes it whole. Everybody else takes the sections that it needs.
COMPOSERS = {
    "llama31/command/": ROOTS,
    "llama31/train/setup.py": {"Training"},
    "llama31/train/outset.py": {"Training"},  # what a start says of keys that have no effect
    "llama31/resilience/resume.py": {"Training"},  # seven keys of the root say where a run begins
    "llama31/slurm/bills.py": {"Training"},
    "llama31/slurm/predicted.py": {"Training"},
    "llama31/evaluate/probe.py": {"Probe"},  # makes a run out of a run
    "llama31/judging/judge.py": {"Judge"},
    "llama31/judging/rejection.py": {"Sample"},
    "llama31/sampling/drawing.py": {"Sample"},
    "llama31/convert/checkpoints.py": {"Convert"},
    "llama31/convert/average.py": {"Average"},
    "llama31/failures/": {"Simulate"},
    "llama31/planner/proposals.py": {"Plan", "Simulate"},
    "llama31/post_train/": {"PostTrain"},
    "llama31/curate/running/": {"Curate"},
    "llama31/slurm/arrays.py": {"Curate"},
    "llama31/slurm/synthesis.py": {"FilterData", "Synthesize"},
    "llama31/synth/tasks.py": {"Synthesize"},
    "llama31/synth/quality/": {"FilterData"},
}


def test_functions_take_sections_not_the_whole_config() -> None:
    result, whole = [], set()
    for path in sorted((ROOT / "llama31").rglob("*.py")):
        name = name_of(path)
        composer = next((prefix for prefix in COMPOSERS if name.startswith(prefix)), "")
        for function in (node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef)):
            for given in [*function.args.args, *function.args.kwonlyargs]:
                words = set(re.findall(r"\w+", ast.unparse(given.annotation))) if given.annotation else set()
                if roots := words & ROOTS:
                    whole.add(composer)
                    if not roots <= COMPOSERS.get(composer, set()):
                        result.append(f"{name}:{function.lineno} {function.name} takes {sorted(roots)}")
    report(result)
    assert whole == COMPOSERS.keys(), "somebody who takes no whole config stands among those who do"


# A section of the config, and the thing that it is of.
TWINS = {"Checkpoint", "Server", "Tokenizer"}


def test_a_class_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for folder in ("llama31", "recipes", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(parse(path)):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, []).append(name_of(path))
    report([f"{name}: {', '.join(where)}" for name, where in places.items() if len(where) > 1 and name not in TWINS])


def test_files_are_one_room() -> None:
    sizes = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    report([f"{name} has {lines} lines; split it at 450" for name, lines in sizes.items() if lines > 450])


def test_nothing_is_left_to_do() -> None:
    marks = ["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]
    files = [*SOURCES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("conf/**/*.yaml")]
    report(
        [
            f"{name_of(path)}:{number} leaves a {mark}; do it, or state the limit and raise"
            for path in files
            for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
            for mark in marks
            if mark in text
        ]
    )


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Public functions of a module and public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"))
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def says_enough(function: ast.FunctionDef) -> bool:
    """A docstring, or a body of one statement (a property, a protocol), or `forward`: there the class speaks."""
    return ast.get_docstring(function) is not None or len(function.body) == 1 or function.name == "forward"


def test_public_functions_say_what_they_do_and_return() -> None:
    result = []
    for path in SOURCES:
        for function in public_functions(parse(path)):
            where = f"{name_of(path)}:{function.lineno} {function.name}"
            if function.returns is None:
                result.append(f"{where} has no return type")
            if path.parts[-2] != "recipes" and not says_enough(function):
                result.append(f"{where} has no docstring")
    report(result)


def test_modules_open_with_their_purpose() -> None:
    report(
        [f"{name_of(p)} has no docstring" for p in SOURCES if p.read_text().strip() and not ast.get_docstring(parse(p))]
    )


def test_no_exception_is_swallowed() -> None:
    report(
        [
            f"{name_of(path)}:{node.lineno} swallows an exception in silence"
            for path in SOURCES
            for node in ast.walk(parse(path))
            if isinstance(node, ast.ExceptHandler) and all(isinstance(x, ast.Pass) for x in node.body)
        ]
    )


def test_what_a_test_starts_finds_the_callers_packages(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/callers/packages")
    result = command("-c", "import os, sys; print(sys.path, os.environ['PYTHONPATH'])", check=True).stdout
    assert "'/callers/packages'" in result and result.split()[-1] == f"{ROOT}:/callers/packages"


def test_python_is_one_that_the_pins_support() -> None:
    assert (3, 11) <= sys.version_info[:2] <= (3, 12)
