"""Run by each Python that a one-file program is built for: code and checks as it knows them.

Standard input: JSON, {"code": {name: [source file, file name in tracebacks]},
"checked": {name: file}, "out": folder}.  Writes <out>/<name>.pyc; standard
output: JSON, {"checks": {name: hex}}.  Both differ between versions: the code's
format, and the hash that is built into the interpreter (`_imp.source_hash`:
SipHash-2-4 before 3.11, SipHash-1-3 from then on; 1 ns a byte and no import).
Wants PYTHONHASHSEED=0: before 3.11 the order of a constant set depends on it.
"""

import _imp
import ast
import importlib.util
import json
import marshal
import os
import sys

UNCHECKED_HASH = 1  # PEP 552: the source is not looked at

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def without_docstrings(source):
    """The syntax tree of a module, less what nothing reads at run time."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body.pop(0)
            if not node.body and not isinstance(node, ast.Module):
                node.body.append(ast.copy_location(ast.Pass(), first))
    return tree


def without_annotations(tree):
    """The tree, less the annotations of functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
    return tree


asked = json.load(sys.stdin)
os.makedirs(asked["out"], exist_ok=True)
for name, (path, shown) in sorted(asked["code"].items()):
    with open(path, "rb") as file:
        source = file.read()
    # Docstrings go: a fifth of the size.  Assertions stay, which -OO would take as well.
    tree = without_docstrings(source)
    if name.startswith("rfaas"):
        tree = without_annotations(tree)
    code = compile(tree, shown, "exec", dont_inherit=True, optimize=0)
    header = importlib.util.MAGIC_NUMBER + UNCHECKED_HASH.to_bytes(4, "little")
    header += importlib.util.source_hash(source)
    data = marshal.dumps(code)
    with open(os.path.join(asked["out"], f"{name}.pyc"), "wb") as file:
        file.write(header + data)
checks = {}
for name, path in sorted(asked["checked"].items()):
    with open(path, "rb") as file:
        checks[name] = _imp.source_hash(0, file.read()).hex()
json.dump({"checks": checks}, sys.stdout)
