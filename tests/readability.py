"""How dense each file reads: python tests/readability.py [FILES]. Operations are calls, arithmetic, comparisons,
subscripts, conditionals, stars and comprehensions; code lines are those without blanks, comments and docstrings."""
import ast
import pathlib
import sys

OPERATIONS = (ast.Call, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Subscript, ast.IfExp, ast.Starred,
              ast.comprehension, ast.NamedExpr, ast.Lambda)
ROOT = pathlib.Path(__file__).resolve().parent.parent


def code_lines(source, tree):
    """The numbers of the lines that hold code."""
    lines = {i for i, line in enumerate(source.splitlines(), 1) if line.strip() and not line.strip().startswith('#')}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            lines -= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    return lines


print('file                     lines  code  over 100 columns  operations per code line')
for path in map(pathlib.Path, sys.argv[1:] or sorted([*ROOT.glob('*.py'), *ROOT.glob('ideas/*.py')])):
    source = path.read_text(encoding='utf-8')
    tree = ast.parse(source)
    code = len(code_lines(source, tree))
    wide = sum(len(line) > 100 for line in source.splitlines())
    operations = sum(isinstance(node, OPERATIONS) for node in ast.walk(tree))
    print(f'{path.name:24} {len(source.splitlines()):5} {code:5} {wide:17} {operations / max(1, code):25.2f}')
