"""Programs that tests start, as `python -m programs.NAME`; `helpers.processes` says how."""
