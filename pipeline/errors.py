"""The three errors that a job turns into an exit status: 2 for UserError, 1 for JobFailed, the step's own for StepFailed."""


class UserError(ValueError):
    """Wrong settings or input. The message is one line: what is wrong, what was expected, what to do."""


class JobFailed(RuntimeError):
    """A job did its work and the outcome is not acceptable. The message says why and what to do; exit status 1."""


class StepFailed(JobFailed):
    """A step of a chain failed and has said why; its exit status is that of the chain."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
