"""How a live plant tells its state; apart from the plant, since a controller reads it without a simulator."""

HEADER = ("stamp", "step_stamp", "episode", "step", "reward", "terminated", "truncated")
"""What a state carries before its observation: its own stamp, and the record of the step that led to it.

Stamps are plant seconds since the start; `step_stamp` is that of the observation the step started from, and NaN in
the first state, which no step led to. After the last step of an episode the record is of that step, while the
observation is already the first of the next episode.
"""
