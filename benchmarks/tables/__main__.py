"""One command a table: runs the rows that can run with what is at hand, and writes the table.

Run from the bundle's folder:

    python -m benchmarks.tables phantoms                                   # Table 1 on phantoms
    python -m benchmarks.tables chaos --dataset_dir /data/chaos_t2spir     # Table 1 on CHAOS
    python -m benchmarks.tables phantoms_adaptation                        # Table 2 on phantoms
    python -m benchmarks.tables btcv --dataset_dir /data/btcv              # Table 1 as the paper has it

The same command goes on where it was interrupted: a result that is there, of these settings, is not made again. The
folder of results holds one JSON file a row and run, what each command printed, and ``table.json``, ``table.md`` and
``table.png``, which are written anew after every command.
"""

from __future__ import annotations

import sys

from benchmarks.program import run_command
from benchmarks.tables import report
from benchmarks.tables.plan import Table, TableError
from benchmarks.tables.running import run_steps


def main(
    table: str,
    output: str | None = None,
    rows: str | tuple[str, ...] | None = None,
    runs: str | tuple[str, ...] | None = None,
    jobs: int = 1,
    only_report: bool = False,
    **overrides,
) -> None:
    """Runs the rows of a table that can run, and writes the table.

    Args:
        table: name of a table in ``benchmarks/tables/definitions``, or path of another such file.
        output: folder of the results; by default ``runs/tables/{table}``.
        rows: only these.
        runs: only these repetitions.
        jobs: commands at the same time, which share the processor's cores.
        only_report: write the table of what is there, and run nothing.
        overrides: values of the configuration to change in every command, such as ``--dataset_dir``; ``--checkpoint``
            goes to SAM's row.
    """
    try:
        plan = Table.read(table, output, overrides)
        recorded = {name: row["repeat_with"] for name, row in plan.rows.items() if "recorded" in row}
        wanted, repeated = _chosen(rows, plan.runnable, "row", recorded), _chosen(runs, plan.runs, "run", {})
    except TableError as error:
        sys.exit(str(error))
    if not only_report:
        run_steps(plan, wanted, runs=repeated, jobs=jobs, after_each=lambda: report.write(plan))
    content = report.write(plan)
    print(f"\n{report.to_markdown(content)}\nWritten to '{plan.output}'.")


def _chosen(names, known, what: str, recorded: dict[str, str]) -> list[str]:
    if names is None:
        return list(known)
    chosen = [str(each) for each in ([names] if isinstance(names, (str, int)) else names)]
    for name in chosen:
        if name in recorded:
            raise TableError(f"The {what} '{name}' is recorded, and cannot be run here: commit {recorded[name]} can.")
    if set(chosen) - set(known):
        raise TableError(f"The table has no {what} {sorted(set(chosen) - set(known))}. It has: {', '.join(known)}.")
    return chosen


if __name__ == "__main__":
    run_command(main)
