"""``privtensors backends``: which operation runs on which backend, read from the kernel tables; and the set-up of a plugin's."""

from __future__ import annotations

from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtensors.core.registry import BACKENDS, backend_class, backend_names, registry
from privtensors.errors import RegistryError, UnknownBackend, UsageError

if TYPE_CHECKING:
    from privtensors.core.optable import Op

START, END = "<!-- matrix -->", "<!-- /matrix -->"
LEGEND = "yes: all tensor operands may be protected at once. SP, PS, …: only these mixes of protected (S) and public (P). no: it raises."


app = typer.Typer(invoke_without_command=True, epilog="Example: privtensors backends --json")


def _table() -> tuple[Op, ...]:
    from privtensors.core.optable import OPS  # torch comes with it: only when a matrix is printed

    return OPS


def operand_patterns(op: Op, backend: Any) -> tuple[str, ...]:
    """Mixes of protected (S) and public (P) operands for which ``backend`` has a kernel of row ``op``, sorted."""
    if op.alias:
        return ("S",)  # core does it for every backend
    found = {"".join("P" if letter == "P" else "S" for letter in kinds) for name, kinds in backend.kernels if name == op.name}
    return tuple(sorted(found, key=lambda p: (len(p), p)))


def cell(op: Op, patterns: tuple[str, ...]) -> str:
    """``yes``, ``no``, or the mixes that are supported where not all operands may be protected at once."""
    if not patterns:
        return "no"
    schema = (*op.overloads, *op.inplace)[0]._schema
    needed = sum(str(a.type) in ("Tensor", "List[Tensor]") for a in schema.arguments if not a.kwarg_only)
    if any("P" not in p and len(p) >= needed for p in patterns):
        return "yes"
    shown = [p for p in patterns if len(p) >= min(needed, max(map(len, patterns)))]
    return " ".join(shown[:3]) + (" …" if len(shown) > 3 else "")


def built_in() -> tuple[str, ...]:
    """Names of the backends that come with privtensors itself, ``clear`` first."""
    entries = registry().groups[BACKENDS]
    names = [name for name in backend_names() if entries[name].value.startswith("privtensors.")]
    return tuple(sorted(names, key=lambda name: (name != "clear", name)))


def support(names: tuple[str, ...]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Per operation and backend the supported mixes of operands.

    Raises:
        RegistryError: A backend cannot be loaded.
    """
    classes = {name: backend_class(name) for name in names}
    return {op.name: {name: operand_patterns(op, classes[name]) for name in names} for op in _table()}


def markdown() -> str:
    """The block between the two matrix comments of README.md, for the backends of this package.

    Raises:
        RegistryError: A backend cannot be loaded.
    """
    names = built_in()
    rows = support(names)
    lines = [
        f"| operation | kind | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
        *(f"| `{op.name}` | {op.category} | {' | '.join(cell(op, rows[op.name][n]) for n in names)} |" for op in _table()),
        f"| **rows covered** | {len(_table())} | {' | '.join(str(sum(bool(rows[op.name][n]) for op in _table())) for n in names)} |",
    ]
    return "\n".join([*lines, "", LEGEND])


@app.callback()
def backends(
    ctx: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    markdown_: Annotated[bool, typer.Option("--markdown", help="Print the block that README.md holds.")] = False,
) -> None:
    """Print which operation runs on which installed backend.

    Example: privtensors backends --json
    """
    if ctx.invoked_subcommand is not None:
        return
    if json and markdown_:
        raise UsageError("--json and --markdown exclude each other", where="privtensors backends", fix="give one of them")
    if markdown_:
        typer.echo(markdown())
        return
    usable, broken = [], {}
    for name in dict.fromkeys((*built_in(), *backend_names())):
        try:
            backend_class(name)
            usable.append(name)
        except RegistryError as error:  # one broken plugin must not hide the others
            broken[name] = str(error)
    names = tuple(usable)
    rows = support(names)
    if json:
        described = {n: {"guarantee": backend_class(n).guarantee, "assumption": backend_class(n).assumption} for n in names}
        operations = {op.name: {"category": op.category, "backends": {n: list(rows[op.name][n]) for n in names}} for op in _table()}
        typer.echo(dumps({"backends": described, "operations": operations, "broken": broken}, indent=2, ensure_ascii=False))
        return
    _print(names, rows, broken)


def _print(names: tuple[str, ...], rows: dict[str, dict[str, tuple[str, ...]]], broken: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Operations by backend", caption=LEGEND)
    for column in ("operation", "kind", *names):
        table.add_column(column)
    for op in _table():
        cells = [cell(op, rows[op.name][n]) for n in names]
        table.add_row(op.name, op.category, *(f"[dim]{c}[/dim]" if c == "no" else c for c in cells))
    console = Console()
    console.print(table)
    for name in names:
        made = backend_class(name)
        console.print(f"[bold]{name}[/bold]: guarantee {made.guarantee}; {made.assumption}", highlight=False)
    for name, reason in broken.items():
        console.print(f"[bold]{name}[/bold] cannot be used: {reason}", highlight=False, markup=True)


@app.command(epilog="Example: privtensors backends install crypten")
def install(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the backend; its package must be installed.")],
    again: Annotated[bool, typer.Option("--again", help="Remove what was installed before and start over.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Set up what a backend needs beside its package.

    That may be a virtual environment of its own with pinned versions, which leaves the current one as it is.
    """
    from privtensors.cli.stages import Stages

    if name not in backend_names():
        raise UnknownBackend(
            f"no installed package provides a backend {name!r}",
            where="privtensors backends install",
            fix=f"install it first, e.g. pip install privtensors-{name}; installed: {', '.join(backend_names())}",
        )
    # A backend class offers a static method install(stage, again): each step runs inside stage(title); it returns facts to print.
    set_up = getattr(backend_class(name), "install", None)
    facts = {} if set_up is None else dict(set_up(Stages().stage, again))
    if json:
        typer.echo(dumps({"ok": True, "backend": name, "needed": set_up is not None, "installed": facts}, ensure_ascii=False))
    elif set_up is None:
        typer.echo(f"{name} needs nothing beside its package")
    else:
        typer.echo(f"{name} is ready: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
