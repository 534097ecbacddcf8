"""A race between this package's loader and others: the same work on the same shards, each loader in its own process.

    setting     the work that every contender does
    contenders  the loaders; one module per library
    worker      the process of one contender
    runner      runs the processes in turn
    comparison  the results as tables, JSON and charts

The command is bench/end_to_end.py.
"""
