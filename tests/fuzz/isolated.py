"""Running many cases in a child process that may crash, hang or take too much memory without ending the tests.

The child is forked, so it starts with everything imported. It names each case before it runs; when it dies, the next
child goes on after that case.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from cassl_lib.errors import CasslError

SECONDS = 20  # per case
GIGABYTE = 1 << 30
ARENAS = GIGABYTE // 2  # address space that threads reserve and do not use
MOST_DEATHS = 20  # of children, before a kind is given up


@dataclass(frozen=True)
class Outcome:
    """What became of a case: "accepted", "refused", or what is wrong with it."""

    number: int
    state: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.state not in ("accepted", "refused")


class Hang(BaseException):
    """A case took longer than `SECONDS`."""


def outcomes(run_cases: Callable[[Callable], None], *, only: int | None = None) -> list[Outcome]:
    """The outcome of every case.

    Args:
        run_cases: function that calls its argument, `attempt(case_function)`, once per case, always in the same order.
        only: the number of the one case that is run.
    """
    done: list[Outcome] = []
    for _ in range(MOST_DEATHS):
        new, finished = _in_child(run_cases, first=len(done), only=only)
        done += new
        if finished:
            break
    return done


def _in_child(run_cases, *, first: int, only: int | None) -> tuple[list[Outcome], bool]:
    """The outcomes of the cases from `first` on until the child ends, and whether it came to the last one."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _child(run_cases, first, only, os.fdopen(writer, "w", buffering=1))
    os.close(writer)
    found, begun, finished = [], None, False
    with os.fdopen(reader) as lines:
        while True:
            if not select.select([lines], [], [], 2 * SECONDS)[0]:  # stuck outside Python, where no alarm arrives
                os.kill(child, signal.SIGKILL)
            line = lines.readline()
            if not line:
                break
            kind, *values = json.loads(line)
            if kind == "begin":
                begun = values[0]
            elif kind == "end":
                found.append(Outcome(*values))
                begun = None
            else:
                finished = True
    status = os.waitpid(child, 0)[1]
    if begun is not None:
        died = (
            signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        )
        found.append(Outcome(begun, "died", died))
    elif not finished:
        raise RuntimeError(f"the child ended outside a case, with status {status}")
    return found, finished


def _child(run_cases, first: int, only: int | None, pipe) -> None:
    """Run the cases and end the process, whatever happens."""
    number = -1

    def tell(*values) -> None:
        pipe.write(json.dumps(values) + "\n")
        pipe.flush()

    def attempt(case) -> None:
        nonlocal number
        number += 1
        if number < first or only not in (None, number):
            return
        tell("begin", number)
        tell("end", number, *_attempted(case))

    try:
        signal.signal(signal.SIGALRM, _raise_hang)
        used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTE + ARENAS,) * 2)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            run_cases(attempt)
        tell("finished")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _attempted(case) -> tuple[str, str]:
    """Whether a case was accepted or refused, or what is wrong."""
    signal.alarm(SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        case()
        state = "accepted", ""
    except CasslError as error:
        state = ("refused", str(error)) if "\n" not in str(error).strip() else ("several lines", str(error))
    except Hang:
        state = "hang", _where()
    except AssertionError as error:
        state = "wrong result", str(error) or _where()
    except BaseException as error:
        state = "traceback", f"{type(error).__name__}: {error} {_where()}"
    finally:
        signal.alarm(0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # kB
    return state if grown * 1024 < GIGABYTE else ("memory", f"{grown / 1e6:.1f} GB")


def _where() -> str:
    """The last lines of this repository in the traceback at hand."""
    import sys

    frames = traceback.extract_tb(sys.exc_info()[2])
    own = [f"{os.path.basename(each.filename)}:{each.lineno}" for each in frames if "cassl_lib" in each.filename]
    return " < ".join(reversed(own[-3:]))


def _raise_hang(*_) -> None:
    raise Hang
