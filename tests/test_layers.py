"""Who may know whom, read from the sources by ast; what an import drags in, seen in a fresh interpreter.

Every check is a function from source text to faults, so that the tests below can also show it a bad source.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"planner", "sim", "exec", "traces"}
MAY_IMPORT = {
    "planner": set(),
    "sim": {"planner"},
    "exec": {"planner"},
    "traces": {"planner"},
    "polyrhythm": ROOMS,
}
OURS = ROOMS | {"polyrhythm", "models", "tests", "benchmarks", "notebooks"}
TORCH = {"torch", "diffusers", "transformers"}
# Not even inside a function: these rooms have no use for them.
NEVER = {"planner": TORCH | {"simpy"}, "sim": TORCH, "traces": TORCH}
DIFFUSERS_AT_HOME = {f"exec/{name}.py" for name in ("unet", "mmdit", "pipeline", "describe", "models", "sampler")}

UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SAFE_NAMES = {"joblib.Parallel", "joblib.delayed", "joblib.parallel_config"}  # processes; not its files
UNSAFE_NAMES = {
    *("torch.load", "torch.save", "torch.hub.load", "torch.jit.load", "yaml.load", "os.system"),
    *("eval", "exec"),
}
# torch.distributed's object collectives are pickle underneath
UNSAFE_CALLEE = re.compile(r"(^|\.)((all_)?gather|scatter|broadcast|send|recv)_object(_list)?$")
UNSAFE_FLAGS = {"shell", "allow_pickle", "trust_remote_code"}
UNFINISHED = re.compile(r"\b(" + "TO" + "DO|FIX" + r"ME)\b")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every absolute import, those inside functions and importlib's too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            callee = dotted(node.func, {}).rpartition(".")[2]
            if callee in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """`t.load` -> "torch.load" where names has t -> torch; "" for what is not a plain name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return ""


def bound_names(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it was imported as."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
    return names


def wrong_arrows(path: str, source: str) -> list[str]:
    """Imports in a file of ours that its room may not have."""
    room = path.split("/")[0]
    faults = []
    for line, name in imports(ast.parse(source)):
        head = name.split(".")[0]
        if head in OURS and head != room and head not in MAY_IMPORT[room]:
            faults.append(f"{path}:{line}: {room} imports {head}")
        if head in NEVER.get(room, set()):
            faults.append(f"{path}:{line}: {room} imports {head}")
        if head == "diffusers" and path not in DIFFUSERS_AT_HOME:
            faults.append(f"{path}:{line}: diffusers outside the adapters")
    return sorted(set(faults))


def hidden_builtins(path: str, source: str) -> list[str]:
    """`import exec` binds the name exec and hides the builtin; `from exec.x import y` does not."""
    return [
        f"{path}:{node.lineno}: import exec hides the builtin"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import)
        and any(alias.name.split(".")[0] == "exec" and not alias.asname for alias in node.names)
    ]


def unsafe(path: str, source: str) -> list[str]:
    """Pickle in any coat, shells, code from a file."""
    tree = ast.parse(source)
    names = bound_names(tree)
    named = [(line, name) for line, name in imports(tree) if name not in SAFE_NAMES]
    faults = [(line, name) for line, name in named if name.split(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = dotted(node, names)
            # bare names count only when called, so that our package may be named
            if UNSAFE_CALLEE.search(name) or (name in UNSAFE_NAMES and "." in name):
                faults.append((node.lineno, name))
        elif isinstance(node, ast.Call):
            name = dotted(node.func, names)
            if name in UNSAFE_NAMES and "." not in name:
                faults.append((node.lineno, name))
            for flag in node.keywords:
                off = isinstance(flag.value, ast.Constant) and not flag.value.value
                if flag.arg in UNSAFE_FLAGS and not off:
                    faults.append((node.lineno, f"{flag.arg}="))
    return [f"{path}:{line}: {name}" for line, name in sorted(set(faults))]


def unfinished(path: str, source: str) -> list[str]:
    lines = enumerate(source.splitlines(), 1)
    return [f"{path}:{number}: {line.strip()}" for number, line in lines if UNFINISHED.search(line)]


def sources(*folders: str) -> list[tuple[str, str]]:
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def faults_in(check, *folders: str) -> list[str]:
    return [fault for path, source in sources(*folders) for fault in check(path, source)]


def test_every_room_is_a_typed_package():
    for room in MAY_IMPORT:
        assert (ROOT / room / "__init__.py").exists(), room
        assert (ROOT / room / "py.typed").exists(), room


def test_arrows():
    assert faults_in(wrong_arrows, *MAY_IMPORT) == []


def test_exec_does_not_hide_the_builtin():
    assert faults_in(hidden_builtins, *MAY_IMPORT, "models", "benchmarks", "tests") == []


def test_nothing_unsafe():
    assert faults_in(unsafe, *MAY_IMPORT, "models", "benchmarks") == []


def test_nothing_unfinished():
    assert faults_in(unfinished, *MAY_IMPORT, "models", "benchmarks", "tests") == []


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        ("planner/a.py", "import sim.run"),
        ("planner/a.py", "from traces.store import read"),
        ("planner/schemes/a.py", "def f():\n    import torch"),
        ("planner/a.py", "import simpy"),
        ("sim/a.py", "from exec.run import run"),
        ("sim/a.py", "import importlib\nimportlib.import_module('traces.fit')"),
        ("sim/a.py", "import torch.nn as nn"),
        ("exec/a.py", "from sim import run"),
        ("exec/a.py", "import polyrhythm"),
        ("exec/run.py", "from diffusers import UNet2DConditionModel"),
        ("traces/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sim.run import run"),
        ("polyrhythm/a.py", "import diffusers"),
        ("polyrhythm/a.py", "from tests.helpers import tiny"),
    ],
)
def test_a_wrong_arrow_is_seen(path, bad):
    assert len(wrong_arrows(path, bad)) == 1


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("planner/a.py", "import numpy\nfrom planner.plan import Plan\nfrom . import ops"),
        ("sim/a.py", "import simpy\nfrom planner.plan import Plan"),
        ("exec/unet.py", "import torch, diffusers\nfrom planner.plan import Plan"),
        ("polyrhythm/a.py", "from sim.run import run\nfrom exec.run import run as execute"),
    ],
)
def test_a_right_arrow_passes(path, good):
    assert wrong_arrows(path, good) == []


def test_a_hidden_builtin_is_seen():
    assert hidden_builtins("a.py", "import exec") and hidden_builtins("a.py", "import exec.run")
    assert not hidden_builtins("a.py", "from exec.run import run\nimport exec.run as execute")


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from pickle import loads as read",
        "from joblib import load",
        "from joblib import Memory, Parallel",
        "import torch as t\nt.load(path)",
        "from torch import load\nload(path)",
        "import torch.distributed as dist\ndist.gather_object(x, y)",
        "from torch.distributed import scatter_object_list as s\ns(x, y)",
        "import subprocess\nsubprocess.run(line, shell = True)",
        "import subprocess\nsubprocess.run(line, shell = flag)",
        "import yaml\nyaml.load (text)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import os\nos.system(line)",
        "exec(text)",
    ],
)
def test_unsafe_code_is_seen(bad):
    assert unsafe("a.py", bad)


def test_safe_code_passes():
    good = (
        '"""No pickle, no torch.load."""\nimport subprocess, yaml, numpy as np\n'
        "model.eval()\nyaml.safe_load(text)\nnp.load(path)\nsubprocess.run(line, shell=False)\n"
        "from exec.run import run\nrun(plan)\n"
    )
    assert unsafe("a.py", good) == []


def test_unfinished_code_is_seen():
    assert unfinished("a.py", "x = 1  # TO" + "DO: two")
    assert not unfinished("a.py", "today = mastodon = 1")


# Imports the modules it is given ("room.*": and all below it) and prints what came along.
PROBE = """
import importlib, json, pkgutil, sys

def stop(name):
    raise ImportError(name)

for name in sys.argv[1:]:
    module = importlib.import_module(name.removesuffix(".*"))
    below = module.__path__ if name.endswith(".*") else []
    for found in pkgutil.walk_packages(below, module.__name__ + ".", stop):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
print(json.dumps(sorted(sys.modules)))
"""


def modules_after_importing(*names: str, where: Path = ROOT) -> set[str]:
    """sys.modules of a fresh interpreter; -c puts its working directory first on the path."""
    done = subprocess.run([sys.executable, "-c", PROBE, *names], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("room", ["planner", "sim", "traces"])
def test_a_room_imports_without_torch(room):
    loaded = modules_after_importing(f"{room}.*")
    files = [path.removesuffix(".py").removesuffix("/__init__") for path, _ in sources(room)]
    assert {file.replace("/", ".") for file in files if not file.endswith("__main__")} <= loaded
    assert loaded & (TORCH | NEVER[room]) == set()


def test_the_command_line_starts_light():
    face = "polyrhythm.cli" if list((ROOT / "polyrhythm").glob("cli*")) else "polyrhythm"
    heavy = TORCH | {"scipy.optimize", "matplotlib", "pandas"}
    assert modules_after_importing(face) & heavy == set()


def test_a_hidden_import_of_torch_is_seen(tmp_path):
    (tmp_path / "torch.py").touch()
    (tmp_path / "room" / "inner").mkdir(parents=True)
    (tmp_path / "room" / "__init__.py").touch()
    (tmp_path / "room" / "inner" / "__init__.py").touch()
    (tmp_path / "room" / "inner" / "deep.py").write_text("from helper import x\n")
    (tmp_path / "helper.py").write_text("import torch\nx = 1\n")
    assert "torch" in modules_after_importing("room.*", where=tmp_path)
    assert "torch" not in modules_after_importing("room", where=tmp_path)
