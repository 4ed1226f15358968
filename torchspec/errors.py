"""The one exception that a user is meant to read: what is wrong, where, and what to do about it."""


class UserError(Exception):
    """Bad input, configuration or environment. The message is one sentence that names the field, the value and the fix."""


class ContractError(UserError):
    """A check between training and serving failed (the table in docs/architecture.md); the message says the likely cause."""


class EngineMismatch(ContractError):
    """The engine as such yields other states than it should: no matter of one sample, so nothing is retried."""


class FeaturesLost(ContractError):
    """Captured features are no longer where they were put: capturing them again gives the same ones."""


class TransferDown(UserError):
    """Nothing can be sent or fetched: no retry of a single sample would help."""


class Stopped(BaseException):
    """A signal asked to end; the message says what is kept. No Exception: nothing may take it for a failure."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number  # of the signal
