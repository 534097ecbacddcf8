"""This package's loader against what people use today: the same work on the same shards, each in a process of its own.

    setting     the work that all contenders are asked to do
    contenders  who takes part; one module for each library
    worker      the process of one contender
    runner      the processes in turn
    comparison  tables, JSON and charts of what came out

bench/end_to_end.py is the command.
"""
