"""Parses one module and measures it: lines, functions, classes, complexity, imports, docstrings."""

import ast
import asyncio
import sysconfig
import time
import tokenize
from pathlib import Path, PurePosixPath

from agenthive import Agent, Reject

agent = Agent("analyst")

STDLIB = Path(sysconfig.get_paths()["stdlib"])
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (*FUNCTIONS, ast.ClassDef)
# A decision each, as McCabe counts them (IEEE TSE 1976): loops, branches, handlers, conditional expressions, guards.
DECISIONS = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.match_case,
    ast.Assert,
)  # fmt: skip


def module_name(path: str) -> str:
    """``json/__init__.py`` → ``json``; ``json/decoder.py`` → ``json.decoder``."""
    parts = list(PurePosixPath(path).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def complexity(function: ast.AST) -> int:
    """Cyclomatic complexity: decisions + 1; ``a and b or c`` has two."""
    decisions = 0
    for node in ast.walk(function):
        if isinstance(node, DECISIONS):
            decisions += 1
        elif isinstance(node, ast.BoolOp):
            decisions += len(node.values) - 1
    return decisions + 1


def imported(tree: ast.AST) -> list[str]:
    """Top-level names of the modules that are imported absolutely, each once."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return sorted(names)


def measure(path: str) -> dict:
    """The card of one module."""
    started = time.perf_counter()
    with tokenize.open(STDLIB / path) as file:  # honours the file's own encoding
        source = file.read()
    tree = ast.parse(source, filename=path)
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    documented = [tree, *(node for node in nodes if isinstance(node, DOCUMENTED))]
    described = sum(bool(ast.get_docstring(node, clean=False)) for node in documented)
    ranked = sorted(((complexity(node), node.name, node.lineno) for node in functions), reverse=True)
    return {
        "module": module_name(path),
        "path": path,
        "lines": source.count("\n"),
        "functions": len(functions),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "complexity": sum(rank for rank, _, _ in ranked),
        "most_complex": [{"function": name, "line": line, "complexity": rank} for rank, name, line in ranked[:3]],
        "imports": imported(tree),
        "docstring_coverage": round(described / len(documented), 3),
        "milliseconds": round((time.perf_counter() - started) * 1000, 2),
    }


@agent.on("analyse")
async def analyse(message, ctx):
    path = message.body["path"]
    try:
        card = await asyncio.to_thread(measure, path)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise Reject(f"{path} cannot be analysed: {error}") from error
    await ctx.send("librarian", "store", card)
