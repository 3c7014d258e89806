"""How long the reading of a pickle may take, found without reading it.

A few hundred bytes can nest tuples of the same two members so that hashing them, as a dict's key, takes years, within
one instruction that nothing interrupts. So the instructions are counted first, by Python's own list of what each takes
from the stack and puts there.
"""

from __future__ import annotations

import pickletools
from typing import IO

MARK = -1  # on the stack
LEAST, MOST = 10**6, 100  # members visited: by any pickle, and for each of its instructions


def is_too_costly(data: IO[bytes]) -> bool:
    """Whether reading the pickle at this place of a file visits far more members of tuples than it has instructions.

    Args:
        data: is left behind the pickle.

    Raises:
        ValueError, IndexError, KeyError: it is no pickle.
    """
    stack: list[int] = []  # what visiting each value costs
    memo: dict[int, int] = {}
    visited = 0
    for count, (operation, argument, _at) in enumerate(pickletools.genops(data)):
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(MARK)
        else:
            cost = _taken(stack, operation)
            visited += cost
            if visited > LEAST + MOST * count:
                return True
            made = 1 + cost if name.startswith("TUPLE") or name == "DUP" else 1
            stack += [made] * len(operation.stack_after)
    return False


def _taken(stack: list[int], operation: pickletools.OpcodeInfo) -> int:
    """Take what an instruction takes from the stack; its cost."""
    taken = list(operation.stack_before)
    cost = 0
    if pickletools.markobject in taken:
        while (member := stack.pop()) != MARK:
            cost += member
        taken = taken[: taken.index(pickletools.markobject)]
    for _ in taken:
        cost += max(stack.pop(), 0)
    return cost
