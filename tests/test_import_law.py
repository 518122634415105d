"""The import law of the tree, and what no module may do: run at import, unpickle, execute what it reads."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each folder imports itself and these.
MAY_IMPORT = {
    "lit_gpt": set[str](),
    "data_prep": {"lit_gpt"},
    "pretrain": {"lit_gpt"},
    "scripts": {"lit_gpt", "data_prep", "pretrain"},
}
# A room of lit_gpt imports rooms of its own floor and of lower ones.
FLOORS = {
    "lit_gpt": 0,  # cli, errors, files, option_*
    "lit_gpt.model": 1,
    "lit_gpt.checkpoint": 1,
    "lit_gpt.store": 2,
    "lit_gpt.rows": 3,
    "lit_gpt.hf": 3,
}
# Only these modules of a folder import the first one.
ONLY_FOR = {"pretrain.trainer": ("pretrain", {"pretrain.tinyllama_fabric"})}
# Nothing imports a command, except that:
COMMANDS_IMPORTED = {
    "scripts.check_gpu": {"scripts.compare_revisions"},
}

FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for folder in MAY_IMPORT
    for file in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}
COMMANDS = {
    name
    for name, tree in TREES.items()
    if any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in tree.body
    )
}
# Text becomes tokens and tokens become rows without torch: its import takes seconds in every worker.
WITHOUT_TORCH = [name for name in FILES if name.startswith("data_prep.")] + [
    f"lit_gpt.{name}"
    for name in ("cli", "store.tokenizer", "store.token_store", "rows.packed_store", "rows.sample_order")
]
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def imported(tree: ast.AST, for_types: bool = True) -> Iterator[str]:
    """Modules that are imported, also inside functions; without `for_types` only those a run imports."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and not for_types]
    type_blocks = [block for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING"]
    skipped = {id(node) for block in type_blocks for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: every file also runs as a command"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in FILES else node.module for name in inside)


def is_in(module: str, room: str) -> bool:
    return f"{module}.".startswith(f"{room}.")


def floor(module: str) -> int | None:
    return max((height for room, height in FLOORS.items() if is_in(module, room)), default=None)


def imports_against_the_law(tree: ast.AST, module: str) -> Iterator[str]:
    folder, own_floor = module.split(".")[0], floor(module)
    for name in imported(tree):
        top, its_floor = name.split(".")[0], floor(name)
        if top in MAY_IMPORT and top not in {folder, *MAY_IMPORT[folder]}:
            yield f"{folder} imports {name}"
        if own_floor is not None and its_floor is not None and its_floor > own_floor:
            yield f"floor {own_floor} imports {name} of floor {its_floor}"
        if name in ONLY_FOR and is_in(module, ONLY_FOR[name][0]) and module not in ONLY_FOR[name][1]:
            yield f"imports {name}"
        if name in COMMANDS - COMMANDS_IMPORTED.get(module, set()):
            yield f"imports the command {name}"


def circle(imports: dict[str, list[str]]) -> list[str]:
    """The modules of a circle of imports, the first one again at the end; empty if there is none."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def work_at_import(tree: ast.Module) -> Iterator[str]:
    """Statements that do something when the module is imported, and looks at the environment."""
    for statement in tree.body:
        match statement:
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                continue  # the command
            case ast.Expr(value=ast.Constant(value=str())):
                pass  # a docstring
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=value))) if (
                ast.unparse(value) == "sys.path"
            ):
                pass  # what makes a command run from a plain clone
            case ast.Expr() | ast.For() | ast.While() | ast.With() | ast.Delete():
                yield f"line {statement.lineno} runs at import"
        for node in evaluated_at_import(statement):
            if ast.unparse(node) in ("os.environ", "os.getenv", "environ", "getenv", "print"):
                yield f"line {node.lineno} reads the environment or prints at import"


def evaluated_at_import(statement: ast.stmt) -> Iterator[ast.AST]:
    """Every node but those in the bodies of functions."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            defaults = [default for default in node.args.defaults + node.args.kw_defaults if default]
            waiting += defaults + getattr(node, "decorator_list", [])
        else:
            waiting += ast.iter_child_nodes(node)


def executes_data(tree: ast.AST) -> Iterator[str]:
    """Ways in which a file that is read could run code."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="pickle", names=[ast.alias(name="UnpicklingError")]):
                continue  # what torch.load raises where it refuses
            case ast.Import() | ast.ImportFrom():
                yield from (f"imports {name}" for name in imported(node) if name.split(".")[0] in PICKLERS)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        name = ast.unparse(call.func)
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield f"line {call.lineno}: torch.load without weights_only=True"
        if name == "yaml.load" or name in ("eval", "exec"):
            yield f"line {call.lineno}: {name}"
        for keyword in ("trust_remote_code", "allow_pickle", "shell"):
            if keywords.get(keyword, "False") != "False":
                yield f"line {call.lineno}: {keyword}={keywords[keyword]}"


def breaches(tree: ast.Module, module: str) -> list[str]:
    return [*imports_against_the_law(tree, module), *work_at_import(tree), *executes_data(tree)]


@pytest.mark.parametrize("module", FILES)
def test_every_module_keeps_the_law(module):
    assert breaches(TREES[module], module) == []


def test_every_exception_is_needed():
    for module, commands in COMMANDS_IMPORTED.items():
        assert commands <= set(imported(TREES[module])), module


def test_no_imports_go_in_a_circle():
    assert circle({name: list(imported(tree, for_types=False)) for name, tree in TREES.items()}) == []


@pytest.mark.parametrize(
    ("module", "breach", "told"),
    [
        ("lit_gpt.cli", "from pretrain import trainer", "lit_gpt imports pretrain.trainer"),
        ("lit_gpt.cli", "def f():\n    import scripts.generate", "lit_gpt imports scripts.generate"),
        ("data_prep.clean", "from pretrain.data import batch", "data_prep imports pretrain.data.batch"),
        ("pretrain.options", "import data_prep.reading", "pretrain imports data_prep.reading"),
        ("lit_gpt.files", "from lit_gpt.model.config import ModelConfig", "of floor 1"),
        ("lit_gpt.model.gpt", "from lit_gpt.store.manifest import FileEntry", "of floor 2"),
        ("lit_gpt.model.gpt", "from lit_gpt import rows", "floor 1 imports lit_gpt.rows of floor 3"),
        ("lit_gpt.model.gpt", "def f():\n    from lit_gpt.hf import mapping", "of floor 3"),
        ("lit_gpt.checkpoint.folder", "import lit_gpt.store.tokenizer", "of floor 2"),
        ("lit_gpt.store.token_store", "from lit_gpt.rows.packed_store import PackedStore", "of floor 3"),
        ("pretrain.launch.plan", "from pretrain.trainer import Trainer", "imports pretrain.trainer"),
        ("pretrain.launch.plan", "def f():\n    from pretrain import trainer", "imports pretrain.trainer"),
        ("data_prep.clean", "from data_prep import dedup", "the command data_prep.dedup"),
        ("data_prep.stages.corpus", "from data_prep.clean import Options", "the command data_prep.clean"),
        ("scripts.publish", "from scripts.generate import main", "the command scripts.generate"),
        ("scripts.submit", "import pretrain.tinyllama_fabric", "the command pretrain.tinyllama_fabric"),
        ("lit_gpt.cli", "print('hello')", "prints at import"),
        ("lit_gpt.cli", "import os\nHOME = os.environ['HOME']", "reads the environment"),
        ("lit_gpt.cli", "import os\ndef f(home=os.getenv('HOME')): pass", "reads the environment"),
        ("lit_gpt.cli", "for _ in range(3): pass", "runs at import"),
        ("lit_gpt.cli", "run_command(Options, main)", "runs at import"),
        ("lit_gpt.cli", "import pickle", "imports pickle"),
        ("lit_gpt.cli", "def f():\n    from cloudpickle import load", "imports cloudpickle"),
        ("lit_gpt.cli", "def f():\n    return torch.load('x')", "without weights_only"),
        ("lit_gpt.cli", "def f():\n    torch.load('x', weights_only=False)", "without weights_only"),
        ("lit_gpt.cli", "def f():\n    np.load('x', allow_pickle=True)", "allow_pickle=True"),
        ("lit_gpt.cli", "def f():\n    A.from_pretrained('x', trust_remote_code=True)", "trust_remote_code"),
        ("lit_gpt.cli", "def f():\n    return eval('1')", "eval"),
    ],
)
def test_a_breach_is_seen(module, breach, told):
    assert told in "; ".join(breaches(ast.parse(breach), module))


def test_a_circle_is_seen_and_types_alone_make_none():
    sources = {"a": "from b import x", "b": "def f():\n    import c", "c": "import a"}
    trees = {name: ast.parse(source) for name, source in sources.items()}
    assert set(circle({name: list(imported(tree)) for name, tree in trees.items()})) == {"a", "b", "c"}
    trees["c"] = ast.parse("if TYPE_CHECKING:\n    import a")
    assert circle({name: list(imported(tree, for_types=False)) for name, tree in trees.items()}) == []


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_importing_everything_is_silent_and_reads_no_environment():
    program = """
import importlib, os, sys
sys.path.insert(0, os.getcwd())
readers, plain = set(), type(os.environ).__getitem__
def reading(self, key):
    frame = sys._getframe(1)
    while frame.f_code.co_filename == os.__file__ or "_collections_abc" in frame.f_code.co_filename:
        frame = frame.f_back
    readers.add((frame.f_code.co_filename, frame.f_lineno))
    return plain(self, key)
type(os.environ).__getitem__ = reading
ours = {importlib.import_module(name).__file__ for name in sys.argv[1:]}
sys.exit("".join(f"{file}:{line} reads the environment\\n" for file, line in readers if file in ours) or 0)
"""
    done = run_python(program, *FILES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_data_side_does_without_torch():
    program = """
import importlib, sys
loads = [name for name in sys.argv[1:] if (importlib.import_module(name), "torch" in sys.modules)[1]]
sys.exit(f"{loads[0]} imports torch" if loads else 0)
"""
    done = run_python(program, *WITHOUT_TORCH)
    assert (done.returncode, done.stderr) == (0, "")
