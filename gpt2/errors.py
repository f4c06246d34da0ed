"""Every error this package raises on purpose, as one tree, and its one warning.

    Error                    anything below
    ├── BadPrompt            text or ids that cannot be read (lone surrogates, ids outside the vocabulary)
    ├── BadOption            an option outside its range, or options that contradict each other
    ├── ContextOverflow      more tokens than the model has positions for
    ├── BadCheckpoint        weights or a config that are missing, damaged or contradictory
    │   └── BadTokenizer     vocabulary files that are missing, damaged or of another kind
    ├── BadData              training data that is missing, empty or unreadable
    ├── Unavailable          a name that needs a network, a device or an extra that is not here
    └── Busy                 a run folder that another process is writing, a queue that is full

A message says what was wrong, with which value, and what to do. It is one sentence or two, because the
command line prints it as it is. All of these mean "the caller can mend it"; anything else that escapes is our bug.
"""


class Error(Exception):
    """Base of every error this package raises on purpose."""


class BadPrompt(Error, ValueError):
    """Text or token ids that cannot be read."""


class BadOption(Error, ValueError):
    """An option outside its range, or options that contradict each other."""


class ContextOverflow(Error, ValueError):
    """More tokens than the model has positions for."""


class BadCheckpoint(Error):
    """Weights or a config that are missing, damaged or contradictory."""


class BadTokenizer(BadCheckpoint):
    """Vocabulary files that are missing, damaged or of another kind."""


class BadData(Error):
    """Training data that is missing, empty or unreadable."""


class Unavailable(Error):
    """Something that needs a network, a device or an extra that is not here."""


class Busy(Error):
    """A run folder that another process is writing, or an engine's queue that is full."""


class Notice(UserWarning):
    """Something the caller should know that is no error, such as a window that slid or a config key not known here."""
