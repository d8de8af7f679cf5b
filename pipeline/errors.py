"""Errors that end a job with one line and their own exit status (runtime/job.py)."""


class UserError(ValueError):
    """Wrong settings or input. The message is one line: what is wrong, what was expected, what to do."""

    status = 2


class JobFailed(RuntimeError):
    """A job did its work and the outcome is not acceptable. The message says why and what to do."""

    status = 1


class StepFailed(JobFailed):
    """A step of a chain failed and has said why; the chain ends with the step's exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
