"""The import law of the tree, and what no module may do: run at import, unpickle, execute what it reads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "lit_gpt": {"lit_gpt"},
    "data_prep": {"data_prep", "lit_gpt"},
    "pretrain": {"pretrain", "lit_gpt"},
    "scripts": {"scripts", "lit_gpt", "data_prep", "pretrain"},
}
FILES = [file for folder in MAY_IMPORT for file in sorted((ROOT / folder).rglob("*.py"))]
MODULES = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES]
# Text becomes tokens and tokens become rows without torch: its import takes seconds in every worker.
WITHOUT_TORCH = [name for name in MODULES if name.startswith("data_prep.")] + [
    f"lit_gpt.{name}"
    for name in ("cli", "store.tokenizer", "store.token_store", "rows.packed_store", "rows.sample_order")
]
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def foreign_imports(tree: ast.AST, folder: str) -> Iterator[str]:
    """Folders of the project that this folder may not import, also inside functions."""
    for name in imported(tree):
        top = name.split(".")[0]
        if top in MAY_IMPORT and top not in MAY_IMPORT[folder]:
            yield f"imports {name}"


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: every file also runs as a command"
            yield node.module


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
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr="register_autograd" | "register_fake"))):
                pass  # part of the definition of an operator
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


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_every_module_keeps_the_law(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    folder = file.relative_to(ROOT).parts[0]
    assert [*foreign_imports(tree, folder), *work_at_import(tree), *executes_data(tree)] == []


@pytest.mark.parametrize(
    "breach",
    [
        "from pretrain import trainer",
        "def f():\n    import scripts.generate",
        "print('hello')",
        "import os\nHOME = os.environ['HOME']",
        "import os\ndef f(home=os.getenv('HOME')): pass",
        "for _ in range(3): pass",
        "run_command(Options, main)",
        "import pickle",
        "def f():\n    from cloudpickle import load",
        "def f():\n    return torch.load('x')",
        "def f():\n    return torch.load('x', weights_only=False)",
        "def f():\n    return np.load('x', allow_pickle=True)",
        "def f():\n    return AutoModel.from_pretrained('x', trust_remote_code=True)",
        "def f():\n    return eval('1')",
    ],
)
def test_a_breach_is_seen(breach):
    tree = ast.parse(breach)
    assert [*foreign_imports(tree, "lit_gpt"), *work_at_import(tree), *executes_data(tree)] != []


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
    done = run_python(program, *MODULES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_data_side_does_without_torch():
    program = """
import importlib, sys
loads = [name for name in sys.argv[1:] if (importlib.import_module(name), "torch" in sys.modules)[1]]
sys.exit(f"{loads[0]} imports torch" if loads else 0)
"""
    done = run_python(program, *WITHOUT_TORCH)
    assert (done.returncode, done.stderr) == (0, "")
