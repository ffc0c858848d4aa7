"""The figures that do not depend on how busy a machine is, and their committed values.

`subjects` names what is counted, `figures` counts it, `stored` reads and writes the
committed file, `compare` compares, and `tables` shows. `benchmarks.check` is the
command.
"""
