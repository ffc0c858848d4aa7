"""The ε of Opacus's accountants, for `tests/privacy/test_accounting.py`.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0
    torch-venv/bin/pip install opacus==1.6.0
    torch-venv/bin/python -m benchmarks.per_example.opacus_epsilon

prints, for each mechanism, ε by Rényi divergences and by numerical composition (PRV),
an upper bound whose stated error is 0.01 to both sides.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import warnings

from opacus.accountants import PRVAccountant, RDPAccountant

# Noise multiplier, δ, sampling rate and number of steps.
SETTINGS = [
    (1.1, 1e-5, 0.05, 400),
    (0.7, 1e-5, 0.01, 1000),
    (2.0, 1e-6, 0.1, 200),
    (4.0, 1e-5, 0.2, 10_000),
    (20.0, 1e-5, 1.0, 400),
]


def main() -> None:
    """Print one line of Python for each mechanism."""
    warnings.simplefilter("ignore")  # the best order is the last, or the first
    for noise_multiplier, delta, rate, steps in SETTINGS:
        rdp, prv = RDPAccountant(), PRVAccountant()
        for accountant in (rdp, prv):
            accountant.history = [(noise_multiplier, rate, steps)]
        values = (rdp.get_epsilon(delta), prv.get_epsilon(delta))
        numbers = ", ".join(f"{float(value):.9f}" for value in values)
        print(f"({noise_multiplier}, {delta}, {rate}, {steps}, {numbers}),")


if __name__ == "__main__":
    main()
