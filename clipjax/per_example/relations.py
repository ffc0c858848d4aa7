"""Neighboring relations: which two data sets differ in one example."""

from __future__ import annotations

from typing import Any

from ..core.checks import require_choice

# By how many of an example's largest contributions the sum can change.
CHANGES = {"ADD_OR_REMOVE_ONE": 1.0, "REPLACE_ONE": 2.0, "REPLACE_SPECIAL": 1.0}


def relation_name(relation: Any) -> str:
    """Return the name of a relation, which may be a member of dp_accounting's enum."""
    name = getattr(relation, "name", relation)
    require_choice("neighboring_relation", name, tuple(CHANGES))
    return name
