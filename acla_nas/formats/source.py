"""Collecting source: what a network is made of, as one text of Python that needs PyTorch alone.

Starting from some classes, the definitions that they use are followed through the modules that these come
from: other classes, functions and constants are copied, imports of PyTorch and of the standard library are
written at the top, and everything else is refused.
"""

from __future__ import annotations

import ast
import builtins
import copy
import importlib.util
import inspect
import symtable
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from acla_nas.errors import AclaError

_Definition = ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign
Symbol = tuple[str, str]  # module and name of something defined at a module's top level


@dataclass
class _Module:
    """What a module's source defines and imports at its top level."""

    name: str
    lines: list[str]
    definitions: dict[str, _Definition] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # name -> (module, its name)


class Source:
    """Collects definitions; :meth:`text` is the result.

    Args:
        replaced: definitions in whose place another one is used.
        pruned: packages whose classes lose the methods that nothing calls.

    Example:
        >>> from acla_nas.search_spaces.layers import conv
        >>> source = Source()
        >>> source.name_of(conv)
        'conv'
        >>> print(source.text())
        from torch import nn
        <BLANKLINE>
        <BLANKLINE>
        # -- acla_nas.search_spaces.layers -----...
        <BLANKLINE>
        <BLANKLINE>
        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            \"\"\"Return a 3x3 convolution that keeps the size.\"\"\"
            return nn.Conv2d(inputs, outputs, 3, padding=1)
        <BLANKLINE>
    """

    def __init__(self, replaced: Mapping[Symbol, Symbol] | None = None, pruned: tuple[str, ...] = ()) -> None:
        self.replaced, self.pruned = dict(replaced or {}), pruned
        self._roots: list[Symbol] = []
        self._names: dict[Symbol, str] = {}  # what a copied definition is called
        self._imports: dict[str, str] = {}  # name -> the import statement that binds it
        self._called: set[str] = {"forward"}  # attributes that copied code uses
        self._uses: dict[Symbol, set[Symbol]] = {}  # what each copied definition uses

    def name_of(self, part: Any) -> str:
        """Return what a class or function is called in the text, and see that it is there."""
        module, name = part.__module__, part.__qualname__
        if module.startswith("torch.nn.modules.") and name in vars(importlib.import_module("torch.nn")):
            self._import("nn", "from torch import nn")
            return f"nn.{name}"
        symbol = self._resolve(module, name)
        if isinstance(symbol, str):
            self._import(name, symbol)
            return name
        self._roots.append(symbol)
        return self._name(symbol)

    def packages(self) -> list[str]:
        """Return the packages that code was copied from, sorted."""
        return sorted({module.partition(".")[0] for module, _ in self._order()})

    def text(self) -> str:
        """Return the imports and the definitions, each after those that it needs."""
        by_module: dict[str, list[Symbol]] = {}
        for symbol in self._order():
            by_module.setdefault(symbol[0], []).append(symbol)
        blocks = []
        for module in self._modules(by_module):
            blocks.append(f"# -- {module} ".ljust(100, "-"))
            definitions = _module(module).definitions
            lines = {definitions[name].lineno: (module, name) for _, name in by_module[module]}
            blocks += [self._code(symbol) for _, symbol in sorted(lines.items())]
        return "\n".join(self._import_lines()) + "\n\n\n" + "\n\n\n".join(blocks) + "\n"

    def _modules(self, by_module: Mapping[str, list[Symbol]]) -> list[str]:
        """Return the modules, each after those that its definitions use."""
        done: dict[str, None] = {}

        def visit(module: str, begun: frozenset[str]) -> None:
            if module in done or module in begun:
                return
            for symbol in by_module[module]:
                for other, _ in self._uses.get(symbol, ()):
                    visit(other, begun | {module})
            done[module] = None

        for module in by_module:
            visit(module, frozenset())
        return list(done)

    def _import_lines(self) -> list[str]:
        plain = sorted({line for line in self._imports.values() if line.startswith("import ")})
        named: dict[str, list[str]] = {}
        for line in sorted(set(self._imports.values()) - set(plain)):
            origin, _, name = line.partition(" import ")
            named.setdefault(origin, []).append(name)
        return plain + [f"{origin} import {', '.join(names)}" for origin, names in sorted(named.items())]

    # -- following names ----------------------------------------------------------------------------

    def _order(self) -> list[Symbol]:
        """Return all definitions that are needed, what a definition uses before it."""
        while True:
            called = set(self._called)
            done: dict[Symbol, None] = {}
            for symbol in self._roots:
                self._visit(symbol, done, set())
            if self._called == called:  # no further method is kept
                return list(done)

    def _visit(self, symbol: Symbol, done: dict[Symbol, None], begun: set[Symbol]) -> None:
        if symbol in done or symbol in begun:
            return
        begun.add(symbol)
        for node in self._kept(symbol):
            for child in ast.walk(node):
                if isinstance(child, ast.Attribute):
                    self._called.add(child.attr)
            for used, is_needed in _names_used(node):
                try:
                    found = self._resolve(symbol[0], used)
                except AclaError:
                    if is_needed:
                        raise
                    continue
                if isinstance(found, str):
                    self._import(used, found)
                elif found is not None and (is_needed or found in done):
                    self._name(found)
                    self._uses.setdefault(symbol, set()).add(found)
                    self._visit(found, done, begun)
        done[symbol] = None

    def _resolve(self, module: str, name: str) -> Any:
        """Return what a name in a module stands for: a symbol, an import statement, or None for a builtin."""
        source = _module(module)
        if name in source.definitions:
            symbol = module, name
            return self.replaced.get(symbol, symbol)
        if name not in source.imports:
            if name in _BUILTINS:
                return None
            raise AclaError(f"{name!r} in {module} is not defined in a way that can be followed")
        origin, original = source.imports[name]
        package = origin.partition(".")[0]
        if package == "torch" or package in sys.stdlib_module_names:
            if original is None:
                bound = "" if name == origin else f" as {name}"
                return f"import {origin}{bound}"
            return f"from {origin} import {original}" + ("" if name == original else f" as {name}")
        if original is None or _is_module(f"{origin}.{original}"):
            raise AclaError(f"{module} uses the package {package}, and the file is to need PyTorch alone")
        try:
            return self._resolve(origin, original)
        except (ImportError, OSError, TypeError):
            raise AclaError(f"{module} uses the package {package}, whose source cannot be read") from None

    def _import(self, name: str, statement: str) -> None:
        other = self._imports.setdefault(name, statement)
        if other != statement:
            raise AclaError(f"two of the modules call different things {name!r}: {other}; {statement}")

    def _name(self, symbol: Symbol) -> str:
        """Return what a definition is called; of two of one name, the later gets a number."""
        if symbol not in self._names:
            taken, name, number = {*self._names.values(), *self._imports}, symbol[1], 2
            while name in taken:
                name, number = f"{symbol[1]}{number}", number + 1
            self._names[symbol] = name
        return self._names[symbol]

    # -- writing ------------------------------------------------------------------------------------

    def _kept(self, symbol: Symbol) -> list[ast.AST]:
        """Return the parts of a definition that are copied: all, or of a class those that something uses."""
        node = _module(symbol[0]).definitions[symbol[1]]
        if not isinstance(node, ast.ClassDef) or symbol[0].partition(".")[0] not in self.pruned:
            return [node]
        return [
            *node.bases,
            *node.keywords,
            *node.decorator_list,
            *(n for n in node.body if self._is_used(n)),
        ]

    def _is_used(self, node: ast.stmt) -> bool:
        if not isinstance(node, ast.FunctionDef):
            return True
        return node.name in self._called or (node.name.startswith("__") and node.name.endswith("__"))

    def _code(self, symbol: Symbol) -> str:
        """Return the text of a definition, with the names that things have here."""
        module = _module(symbol[0])
        node = module.definitions[symbol[1]]
        dropped: set[int] = set()
        if isinstance(node, ast.ClassDef):
            kept = self._kept(symbol)
            for part in node.body if kept[0] is not node else ():
                if part not in kept:
                    assert part.end_lineno is not None
                    dropped.update(range(_first_line(part), part.end_lineno + 1))
        edits: dict[int, list[tuple[int, int, str]]] = {}
        for child in ast.walk(node):
            if isinstance(child, ast.Name):
                name = self._renamed(symbol[0], child.id)
                if name != child.id:
                    edit = (child.col_offset, child.col_offset + len(child.id), name)
                    edits.setdefault(child.lineno, []).append(edit)
        lines = []
        assert node.end_lineno is not None
        for number in range(_first_line(node), node.end_lineno + 1):
            if number in dropped:
                continue
            line = module.lines[number - 1].encode()  # columns are counted in bytes
            for start, end, name in sorted(edits.get(number, []), reverse=True):
                line = line[:start] + name.encode() + line[end:]
            lines.append(line.decode())
        own = self._name(symbol)
        if own != symbol[1] and isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            at = node.lineno - _first_line(node)
            lines[at] = lines[at].replace(f" {symbol[1]}", f" {own}", 1)
        return "\n".join(_without_double_gaps(lines)).rstrip()

    def _renamed(self, module: str, name: str) -> str:
        try:
            found = self._resolve(module, name)
        except AclaError:
            return name
        return self._names.get(found, name) if isinstance(found, tuple) else name


_BUILTINS = frozenset({*dir(builtins), "__name__", "__file__", "__class__"})


@lru_cache(maxsize=256)
def _module(name: str) -> _Module:
    loaded = importlib.import_module(name)
    try:
        text = inspect.getsource(loaded)
    except (OSError, TypeError):
        raise AclaError(
            f"the source of {name} cannot be read: define the backbone in a file, not in a notebook"
        ) from None
    found = _Module(name, text.splitlines())
    package = name if hasattr(loaded, "__path__") else name.rpartition(".")[0]
    for node in _statements(ast.parse(text)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.definitions[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        found.definitions[part.id] = node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module = alias.name if alias.asname else alias.name.partition(".")[0]
                found.imports[alias.asname or module] = module, None
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            origin = importlib.util.resolve_name(origin, package) if node.level else origin
            for alias in node.names:
                found.imports[alias.asname or alias.name] = origin, alias.name
    return found


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements at a module's top level, and those in its ifs and tries."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.If, ast.Try)):
            yield from _statements(child)
        else:
            yield child


def _names_used(node: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield the global names that a definition uses, and whether it needs them to run.

    Names in annotations alone are for readers.
    """
    bare = _Bare()
    body = bare.visit(copy.deepcopy(node))
    text = ast.unparse(body if isinstance(body, ast.stmt) else ast.Expr(body))
    needed = _globals(symtable.symtable(text, "definition", "exec"))
    yield from ((name, True) for name in sorted(needed))
    yield from ((name, False) for name in sorted(bare.names - needed))


class _Bare(ast.NodeTransformer):
    """Takes the annotations off, and keeps the names in them."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def _take(self, annotation: ast.expr | None) -> None:
        if annotation is not None:
            self.names.update(part.id for part in ast.walk(annotation) if isinstance(part, ast.Name))

    def visit_arg(self, node: ast.arg) -> ast.arg:
        self._take(node.annotation)
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._take(node.returns)
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self._take(node.annotation)
        node.annotation = ast.Constant(0)
        return self.generic_visit(node)


def _globals(table: symtable.SymbolTable) -> set[str]:
    """Return the names that a scope and those within it look up in the module."""
    found = {name for scope in table.get_children() for name in _globals(scope)}
    is_module = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (is_module or symbol.is_global()):
            found.add(symbol.get_name())
    return found


def _first_line(node: ast.AST) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])  # type: ignore[attr-defined]


def _without_double_gaps(lines: list[str]) -> list[str]:
    """Leave out the second of two empty lines within a definition."""
    return [line for i, line in enumerate(lines) if line.strip() or (i and lines[i - 1].strip())]


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
