"""Every error of the autoscaler. A message says what was expected, what came, what to do."""


class AutoscalerError(Exception):
    """Root of the autoscaler's errors."""


# --- of the start -------------------------------------------------------------------------


class SettingsError(AutoscalerError):
    """An option is wrong; the command line prints the message and exits with 2."""


class ConfigError(SettingsError):
    """The autoscaler file cannot be used; a line for each thing that is wrong."""


class StateDirError(SettingsError):
    """The folder for records and logs of replicas cannot be used."""


# --- of the frontend ----------------------------------------------------------------------


class FrontendError(AutoscalerError):
    """A call to the frontend failed; the next pass decides anew."""


class FrontendUnavailableError(FrontendError):
    """The frontend does not answer."""


class CallRefusedError(FrontendError):
    """The frontend answered a call with an error of its own."""


class FrontendRefusedError(FrontendError):
    """The frontend will never accept this autoscaler: a wrong token, or no Tideserve frontend."""


class SupersededError(FrontendError):
    """A newer autoscaler acts for this frontend; this one has to leave its replicas alone."""


# --- of a launcher ------------------------------------------------------------------------


class LaunchError(AutoscalerError):
    """A replica could not be started."""


class LauncherAwayError(LaunchError):
    """The engine does not answer: nobody's failed start, to be tried again when it does."""


class NoSuchReplicaError(AutoscalerError):
    """No replica of that name was started by this launcher."""


# --- of a source --------------------------------------------------------------------------


class SourceError(AutoscalerError):
    """A source of samples does not answer, or not with what was asked for: no data (S2)."""
