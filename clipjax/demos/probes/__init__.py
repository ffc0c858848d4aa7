"""Small measurements of what clipping and architecture do to gradients.

Each probe is a module with two functions. `measure(...)` takes numbers as keyword
arguments, all with defaults, and returns a NamedTuple or a dataclass of arrays.
`report(measured)` returns its tables, findings in words, and a figure.
`clipjax probe NAME` runs both; `catalogue` lists the names.
"""
