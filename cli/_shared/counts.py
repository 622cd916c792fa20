"""The tables of `vidgraph summary`: modules, and operations that were not counted."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from cli._shared.say import console
from cli._shared.say import to_json as as_json

if TYPE_CHECKING:
    from heads.evaluation.counting import NetworkCount

HOW_COUNTED = {
    "meta": "on tensors without values",
    "cpu": "on zeros on the CPU, because it asks for values",
}


def print_counts(name: str, counted: "NetworkCount", depth: int) -> None:
    """Print a table of modules, then a table of the operations that were not counted.

    Args:
        name: of the network.
        counted: its counts.
        depth: levels of modules to print. Modules without parameters and MACs are left out.
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
    # Row 0 is the whole network, which the table ends with.
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
    output = console()
    output.print(modules)
    output.print(others)
    output.print(
        f"counted {HOW_COUNTED[counted.device]}; views, copies and masks are not listed. With 2 "
        f"per element of a norm, 1 of an activation and of a pool's input, as GOS's tool counts: "
        f"{counted.tool_macs / 1e9:.2f} G"
    )


def to_json(name: str, counted: "NetworkCount") -> str:
    """All counts as JSON."""
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
