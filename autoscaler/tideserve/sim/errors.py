"""What the simulator's commands refuse."""


class SimulationError(Exception):
    """The message says what was expected, what came and what to do."""
