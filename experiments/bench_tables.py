"""What `metarl bench` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metarl.experiments.printing import print_table

GB, KB = 1e9, 1e3


def show_rows(result: Mapping[str, Any]) -> None:
    """Print the rate of every number of worlds, the ratio to the peer, and the memory taken."""
    rows, peer = result["rows"], result["peer"]
    # A GPU's memory is known, and that of the CPU is not.
    on_gpu = any(row["memory"] is not None for row in rows)
    shown = []
    for row in rows:
        cells = {"worlds": row["num_worlds"], result["unit"]: rounded(row["value"])}
        if peer != "none":
            cells |= {row["peer_mode"] or peer: rounded(row["peer_value"]), "ratio": row["ratio"]}
        if on_gpu:
            memory, each = row["memory"], row["memory_a_world"]
            cells |= {
                "GB in use": None if memory is None else memory / GB,
                "kB a world": None if each is None else each / KB,
            }
        shown.append(cells)
    print_table(shown)
    for row in rows:
        if row["full"] is not None:
            print(f"{row['num_worlds']} worlds do not fit: {row['full']}")
    if len(rows) > 1:
        print(f"most with {result['num_worlds']} worlds: {result['value']:.0f} {result['unit']}")


def show_account(account: Mapping[str, Any]) -> None:
    """Print what the parts of a step take, what they must take at least, and why."""
    device = account["device"]
    print(f"\na step of {account['num_worlds']} worlds takes {1e3 * account['seconds']:.3f} ms:")
    print_table(
        [
            {
                "part": part["part"],
                "us": 1e6 * part["seconds"],
                "share %": 100.0 * part["share"],
                "at least us": 1e6 * part["bound"],
                "for": _cause(part),
                "reached %": 100.0 * part["reached"],
            }
            for part in account["parts"]
        ]
    )
    kernel = device["kernel_seconds"]
    recorded = "" if kernel == device["launch_seconds"] else f", recorded {1e6 * kernel:.2f} us"
    print(
        f"here a second moves {device['bytes_per_second'] / GB:.1f} GB and has "
        f"{device['flops_per_second'] / GB:.0f} Gflop; a launch takes "
        f"{1e6 * device['launch_seconds']:.2f} us{recorded}"
    )


def _cause(part: Mapping[str, Any]) -> str:
    """What bounds a part, with its number."""
    by = part["bound_by"]
    if by == "launches":
        return f"{part['launches']} launch" + ("es" if part["launches"] != 1 else "")
    return f"{part['bytes'] / KB:.3g} kB" if by == "bytes" else f"{part['flops'] / GB:.3g} Gflop"


def show_memory(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what a world takes, and what so many do."""
    print_table(
        [
            {
                "family": row["family"],
                "contacts": row["contacts"],
                "rows": row["constraints"],
                "kB a world": row["shared_model"] / KB,
                "own model, kB": row["own_model"] / KB,
                f"GB for {row['num_worlds']}": row["all"] / GB,
            }
            for row in rows
        ]
    )


def show_sides(result: Mapping[str, Any]) -> None:
    """Print the rates of both sides, their ratio, and which shares were measured."""
    names = {"": "metarl", "peer_": result.get("peer_mode") or result["peer"]}
    sides = []
    for prefix, name in names.items():
        if result[f"{prefix}value"] is not None:
            side = {"side": name, result["unit"]: rounded(result[f"{prefix}value"])}
            if f"{prefix}seconds" in result:
                side["seconds each"] = rounded(result[f"{prefix}seconds"])
            sides.append(side)
    print_table(sides)
    if result["ratio"] is not None:
        print(f"ratio {result['ratio']:.2f}")
    if "sampling_share" in result:
        print(f"sampling {result['sampling_share']:.1%} of the time")
    if "whole_seconds" in result:
        ending = "_share"
        shares = {n.removesuffix(ending): x for n, x in result.items() if n.endswith(ending)}
        shares.pop("sampling", None)
        rate = f" ({result['whole_rate']:.0f} steps/s)" if "whole_rate" in result else ""
        print(
            f"a whole iteration takes {result['whole_seconds']:.2f} s{rate}: "
            + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        )


def rounded(rate: float | None) -> float | None:
    """Three digits, or whole numbers; None stays so."""
    if rate is None:
        return None
    return round(rate) if rate >= 1000 else float(f"{rate:.3g}")
