"""The tables of `summary`: modules, and what was not counted."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from cli._say import console
from cli._say import to_json as as_json

if TYPE_CHECKING:
    from heads.evaluation.counting import NetworkCount

WHY = {
    "meta": "on tensors without values",
    "cpu": "on zeros on the CPU, because it asks for values",
}


def print_counts(name: str, counted: "NetworkCount", depth: int) -> None:
    """Modules to `depth` levels below the whole that have parameters or MACs, the total last; then
    the operations left out.
    """
    from rich.table import Table

    modules = Table(title=f"{name}: {counted.input}", title_justify="left")
    for column, justify in (
        ("module", "left"),
        ("class", "left"),
        ("parameters", "right"),
        ("MACs", "right"),
        ("", "right"),
    ):
        modules.add_column(column, justify=justify)
    total = counted.total
    for row in counted.rows[1:]:
        if row.name.count(".") < depth and (row.parameters or row.macs):
            indent = "  " * row.name.count(".")
            part = f"{100 * row.macs / total.macs:.1f} %" if total.macs else ""
            modules.add_row(
                indent + row.name, row.kind, f"{row.parameters:,}", f"{row.macs:,}", part
            )
    modules.add_section()
    modules.add_row(
        "total", total.kind, f"{total.parameters:,}", f"{total.macs:,}", f"{total.macs / 1e9:.2f} G"
    )
    others = Table(title="ran and is not in the MACs, in elements", title_justify="left")
    for column, justify in (
        ("operation", "left"),
        ("kind", "left"),
        ("calls", "right"),
        ("in", "right"),
        ("out", "right"),
    ):
        others.add_column(column, justify=justify)
    for left in counted.left_out:
        others.add_row(
            left.operation,
            left.kind,
            f"{left.calls:,}",
            f"{left.elements_in:,}",
            f"{left.elements_out:,}",
        )
    paper = console()
    paper.print(modules)
    paper.print(others)
    paper.print(
        f"counted {WHY[counted.device]}; views, copies and masks are not listed. With 2 per "
        f"element of a norm, 1 of an "
        f"activation and of a pool's input, as GOS's tool counts: {counted.tool_macs / 1e9:.2f} G"
    )


def to_json(name: str, counted: "NetworkCount") -> str:
    """Everything, for a program."""
    total = counted.total
    record = {
        "name": name,
        "input": counted.input,
        "device": counted.device,
        "parameters": total.parameters,
        "macs": total.macs,
        "tool_macs": counted.tool_macs,
        "modules": [asdict(row) for row in counted.rows[1:]],
        "left_out": [asdict(left) for left in counted.left_out],
    }
    return as_json(record)
