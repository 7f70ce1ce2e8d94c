"""The tables of what was measured, and of the claims about it."""

import collectives
import rich.table
import scaling_claims
import timing

CAPTION = (
    "number of collectives: bytes that a device puts in (> bytes that it gets out, where these differ). A "
    "collective with several purposes counts for each.\nDevices and processes share this machine's cores: "
    "times show overhead, not speed-up. Compile times are cold, lowering included; 2 x ... and other network "
    "are compiled only."
)


def measured_table(title: str, found: list[scaling_claims.Measurement]) -> rich.table.Table:
    """A row for each measurement; bytes are those of one device."""
    made = rich.table.Table(title=title, caption=CAPTION, caption_justify="left")
    for column in ("program", "processes", "devices", "ms a step", "compile s", "collectives"):
        left = column in ("program", "collectives")
        made.add_column(column, justify="left" if left else "right", no_wrap=left)
    for purpose in collectives.PURPOSES:
        made.add_column(purpose, justify="right")
    for program in dict.fromkeys(one.program for one in found):
        for one in scaling_claims.of_program(found, program):
            step = f"{1e3 * one.step:,.0f}" if one.step else ""
            kinds = ", ".join(f"{number} {kind}" for kind, number in one.collectives.items()) or "none"
            cells = (_cell(one.shares[purpose]) for purpose in collectives.PURPOSES)
            name = f"{program} {scaling_claims.VARIED[one.variation]}".strip()
            numbers = (str(one.processes), str(one.devices), step, f"{one.compile:.1f}")
            made.add_row(name, *numbers, kinds, *cells)
        made.add_section()
    return made


def _cell(share: collectives.Share) -> str:
    """Number of collectives and bytes; what is sent and what arrives where these differ."""
    if not share.collectives:
        return "-"
    moved = f"{share.sent:,}" + (f" > {share.received:,}" if share.sent != share.received else "")
    return f"{share.collectives}: {moved} B"


def host() -> str:
    """Processor and versions; the devices are those of the workers."""
    return ", ".join(part for part in timing.host().split(", ") if "device" not in part)


def checks_table(made: list[scaling_claims.Check]) -> rich.table.Table:
    table = rich.table.Table("claim", "holds", title="What the collectives show")
    for check in made:
        more = f" and {len(check.against) - 1} more" if len(check.against) > 1 else ""
        table.add_row(check.claim, f"no: {check.against[0]}{more}" if check.against else "yes")
    return table
