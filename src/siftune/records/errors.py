"""The one error a person is meant to read: what happened, where, and what to do next."""

from __future__ import annotations

from siftune.records.secrets import without_secrets


class SiftuneError(Exception):
    """A problem with the person's input, settings or machine, said so that they can act on it.

    what:  what happened, one sentence, starting with a lower-case word or a name
    where: ``file:line`` of the data, ``field: value`` of the recipe, or a path; None where there is no place
    todo:  what to do next, one imperative sentence; None only where nothing can be done

    The command line prints these without a traceback and exits with 2. Hub tokens and passwords are taken out.
    """

    def __init__(self, what: str, *, where: str | None = None, todo: str | None = None):
        self.what = without_secrets(what)
        self.where, self.todo = (text and without_secrets(text) for text in (where, todo))
        super().__init__(self._text())

    def _text(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.todo}" if self.todo else text
