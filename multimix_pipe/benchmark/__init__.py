"""How fast is it, and against whom: contenders on the same shards, each in a process of its own."""
