"""Which implementation of an accelerated operation runs: the fast one, or the plain one that one can read."""

from __future__ import annotations

from contextvars import ContextVar, Token
from types import TracebackType

__all__ = ["backend", "is_reference"]

_CHOICES = ("auto", "reference")
_chosen: ContextVar[str] = ContextVar("mercer_backend", default="auto")


class backend:  # noqa: N801 (a verb to its users, who never see an instance but in a `with`)
    """Choose the implementation, from here on or inside a ``with``.

    Args:
        name: "auto" picks the fast path for where the data are (Rust on the CPU, CUDA on a GPU); "reference"
            the plain, slow one in NumPy.

    The choice belongs to the thread (or asyncio task) that makes it: threads start with "auto".

    Raises:
        ValueError: Another name.

    Example:
        >>> import mercer
        >>> with mercer.backend("reference"):
        ...     pass  # every operation in here runs its plain implementation
        >>> mercer.backend("auto")  # until further notice
        backend('auto')
    """

    def __init__(self, name: str) -> None:
        if name not in _CHOICES:
            raise ValueError(f"name must be one of {', '.join(map(repr, _CHOICES))}, got {name!r}")
        self.name = name
        self._token: Token[str] | None = _chosen.set(name)

    def __enter__(self) -> backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _chosen.reset(self._token)
            self._token = None

    def __repr__(self) -> str:
        return f"backend({self.name!r})"


def is_reference() -> bool:
    """Whether the plain implementation is asked for here."""
    return _chosen.get() == "reference"
