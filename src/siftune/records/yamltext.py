"""YAML as settings need it: plain values only, none of Python's objects, nothing that grows when it is opened.

A few lines of YAML may name a list ten times in a list that is itself named ten times, and so on: small to hold, endless to print
or copy. So what a text stands for is counted before it is made.
"""

from __future__ import annotations

from typing import Any

import yaml

from siftune.records.errors import SiftuneError

MOST_CHARACTERS = 2**20
MOST_VALUES = 100_000


def read_yaml(text: str, where: str) -> Any:
    """The value that YAML `text` stands for. SiftuneError where it is broken, too large, or more than plain values."""
    if len(text) > MOST_CHARACTERS:
        raise _refused(f"is longer than {MOST_CHARACTERS:,} characters", where)
    loader = yaml.SafeLoader("")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST_VALUES:
            raise _refused(f"stands for more than {MOST_VALUES:,} values", where)
        return loader.construct_document(node)
    # ValueError: a number of too many digits, a date that is none
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = "it is nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise _refused(f"is not readable YAML ({told[:300]})", where) from error
    finally:
        loader.dispose()


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values that a node stands for, those of anchors each time that they are named."""
    if id(node) in counted:
        return counted[id(node)]
    counted[id(node)] = MOST_VALUES + 1  # what holds itself is endless
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_count(item, counted) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_count(key, counted) + _count(value, counted) for key, value in node.value)
    counted[id(node)] = total
    return total


def _refused(what: str, where: str) -> SiftuneError:
    return SiftuneError(what, where=where, todo="Correct it: settings are plain lines like 'keep: 5%'")
