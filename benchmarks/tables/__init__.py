"""The tables: what is in them, how their rows are run, and how results are shown."""
