"""How fast, beside how fast this machine can be. One file for each part; ``PARTS`` is the list of them.

A part is a module with ``measure(plan: Plan) -> Iterator[Row]``. It runs alone or with the others, and every
ratio in its rows is of two things that were timed in turn.
"""

PARTS = ("limits", "loader", "step", "inference", "startup")
