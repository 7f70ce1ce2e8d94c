"""Nothing in the package or its experiments runs what a file says: no pickle, no eval, no unsafe loader."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("hardmine_jax", "experiments", "launch")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# Modules that run code out of files, or unpack without asking where to.
FORBIDDEN = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "tarfile",
    "xml.dom", "xml.sax", "lxml", "pty", "code", "codeop",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "input"}
METHODS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.load",
           "shutil.unpack_archive", "np.fromstring", "ElementTree.parse", "ElementTree.fromstring",
           "ElementTree.XML", "ElementTree.iterparse"}  # fmt: skip
# Calls that need an argument to be safe, and its only safe value.
NEEDED = {
    "np.load": ("allow_pickle", False), "np.save": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
    "np.lib.format.read_array": ("allow_pickle", False),
}  # fmt: skip


def _name(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _dangers(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [f"{node.lineno}: imports {name}" for name in modules if _is_forbidden(name)]
        if isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in _dangers_of_call(node)]
    return found


def _is_forbidden(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in FORBIDDEN)


def _dangers_of_call(call: ast.Call) -> list[str]:
    name = _name(call.func).replace("numpy.", "np.")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    found = [f"calls {name}"] if name in CALLS | METHODS else []
    if name in NEEDED:
        argument, safe = NEEDED[name]
        value = given.get(argument)
        if not (isinstance(value, ast.Constant) and value.value is safe):
            found.append(f"{name} without {argument}={safe}")
    for argument, value in given.items():
        off = isinstance(value, ast.Constant) and not value.value
        if argument in ("shell", "allow_pickle") and not off:
            found.append(f"{argument}={ast.unparse(value)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_runs_code_out_of_files(path):
    assert _dangers(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import load", "import xml.dom.minidom", "from yaml import load", "eval(x)",
     "np.load(path)", "numpy.load(path, allow_pickle=True)", "np.load(path, allow_pickle=flag)",
     "np.save(path, x)", "torch.load(path)", "torch.load(path, weights_only=False)", "os.system('ls')",
     "subprocess.run('ls', shell=True)", "subprocess.run('ls', shell=flag)", "ElementTree.parse(path)"],
)  # fmt: skip
def test_the_check_itself_finds(line):
    assert _dangers(f"def f():\n    {line}")


def test_the_check_lets_safe_calls_pass():
    lines = ("np.load(p, allow_pickle=False)", "torch.load(p, weights_only=True)", "model.eval()",
             "re.compile('a')", "json.load(p)", "jax.jit(f).lower(x).compile()",
             "subprocess.run(['ls'], shell=False)")  # fmt: skip
    assert _dangers("\n".join(lines)) == []
