"""What takes a while to be answered, asked beside the screen: keys go on meanwhile, however slow a disk or a server is."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from edge.fleet.source import NoPast

Question = TypeVar("Question")
Answer = TypeVar("Answer")
PATIENCE_SECONDS = 0.1  # that a key waits: what comes within it needs no frame that says "wait"


@dataclasses.dataclass(frozen=True)
class Answered(Generic[Question, Answer]):
    """A question, and its answer: or why there is none."""

    question: Question
    answer: Answer | None
    refusal: str = ""


class Lookup(Generic[Question, Answer]):
    """Questions to a past, answered in a thread of its own, one at a time; of those that wait only the newest is asked."""

    def __init__(self, answer: Callable[[Question], Answer], patience_seconds: float = PATIENCE_SECONDS) -> None:
        """`answer` may raise NoPast."""
        self._answer = answer
        self._patience_seconds = patience_seconds
        self._changed = threading.Condition()
        self._wanted: Question | None = None
        self._newest: Answered[Question, Answer] | None = None
        self._is_running = False  # the thread
        self._is_busy = False  # with a question

    def ask(self, question: Question, is_patient: bool = True) -> Answered[Question, Answer] | None:
        """The newest answer, with its question: to this one, where it was asked before or comes soon. None: there is none yet.

        Nobody waits for a question that comes after another one: a key that is held down asks faster than a slow past answers.
        """
        with self._changed:
            if question != self._wanted:
                self._wanted = question
                self._changed.notify_all()
                if not self._is_running:
                    self._is_running = True
                    threading.Thread(target=self._run, name="past", daemon=True).start()
                if is_patient and not self._is_busy:
                    self._changed.wait_for(lambda: self._newest and self._newest.question == question, self._patience_seconds)
            return self._newest

    def drop(self) -> None:
        """Nothing is asked for, or known, any more: the same question is asked anew."""
        with self._changed:
            self._wanted = self._newest = None

    def _run(self) -> None:
        """Until nothing is wanted: then the thread ends."""
        while True:
            with self._changed:
                if self._wanted is None or (self._newest and self._newest.question == self._wanted):
                    self._is_running = False
                    return
                question, self._is_busy = self._wanted, True
            answered = self._answered(question)
            with self._changed:
                self._is_busy = False
                if self._wanted is not None:
                    self._newest = answered
                self._changed.notify_all()

    def _answered(self, question: Question) -> Answered[Question, Answer]:
        try:
            return Answered(question, self._answer(question))
        except NoPast as refusal:
            return Answered(question, None, str(refusal))
        except Exception as error:  # a file that people handed on: it must not end the thread without a word
            logging.getLogger(__name__).exception("the past was not read")
            return Answered(question, None, f"the past can't be read: {error}")
