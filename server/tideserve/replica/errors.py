"""Every error of the replica.

A message says what was expected, what came and what to do: load errors reach the user
through the frontend's model state, batch errors through the caller's status.
"""


class ReplicaError(Exception):
    """Root of the replica's errors."""


class SettingsError(ReplicaError):
    """The process was started with something that cannot work."""


class LoadError(ReplicaError):
    """The model version cannot be served: files, configuration or device do not fit."""


class NotInstalledError(LoadError):
    """What the model needs is not installed where the replica runs, nor for another one."""


# --- of a batch -------------------------------------------------------------------------


class BatchError(ReplicaError):
    """A batch that gave no outputs; the replica goes on unless the device is lost."""


class ModelRaisedError(BatchError):
    """The model, or what feeds it, raised."""


class BadOutputError(BatchError):
    """The outputs do not fit the configuration or the batch's rows."""


class ModelMemoryError(BatchError):
    """Host or device memory did not suffice."""


class OutputTooLargeError(BatchError):
    """The outputs are more than a message may hold."""


class DeviceLostError(BatchError):
    """The device is unusable until the process ends."""


# --- of the link ------------------------------------------------------------------------


class WireError(ReplicaError):
    """Bytes that are not the message they should be."""


class ArenaError(ReplicaError):
    """What was opened is not the memory that the frontend shares."""


class Http2Error(ReplicaError):
    """What came is not HTTP/2, or ends the call before its answer."""


class CallBrokenError(ReplicaError):
    """A call ended without an answer, and may be repeated."""


class CallRefusedError(ReplicaError):
    """The frontend refused a call: this life is over."""


class JoinRefusedError(ReplicaError):
    """The frontend will not have this replica, however often it asks."""
