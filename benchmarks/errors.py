"""What can go wrong in a benchmark: every error says what to do about it."""


class BenchmarkError(Exception):
    """A benchmark could not be taken, or its figures would be wrong."""


class NotInstalledError(BenchmarkError):
    """A tool or peer is not on this machine; the message says how it gets there."""


class ServerFailedError(BenchmarkError):
    """A server did not start, or ended while it was measured."""


class LoadFailedError(BenchmarkError):
    """The load generator failed or printed what is not understood."""


class WrongAnswerError(BenchmarkError):
    """A server answered, but not rightly or not as often as counted: no figure is taken."""
