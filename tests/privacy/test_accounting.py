"""ε, δ and noise multipliers against dp_accounting, closed forms and Opacus."""

import logging
import math
import sys

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr
from scipy.stats import norm

from clipjax import privacy
from clipjax.per_example.relations import CHANGES

REPLACE = "REPLACE_ONE"
SPECIAL = "REPLACE_SPECIAL"
ADD = "ADD_OR_REMOVE_ONE"

# Accountant, relation, noise multiplier, δ, sampling rate, steps.
SETTINGS = [
    ("pld", ADD, 2.0, 1e-5, 0.05, 400),
    ("pld", ADD, 4.0, 1e-6, 0.2, 1000),
    ("pld", ADD, 10.0, 1e-5, 1.0, 100),
    ("pld", SPECIAL, 1.5, 1e-5, 0.01, 1000),
    ("pld", REPLACE, 2.0, 1e-5, 0.05, 100),
    ("rdp", ADD, 1.1, 1e-5, 0.05, 400),
    ("rdp", ADD, 0.7, 1e-5, 0.01, 1000),
    ("rdp", ADD, 4.0, 1e-5, 0.2, 10_000),
    ("rdp", SPECIAL, 2.0, 1e-6, 0.1, 200),
    ("rdp", REPLACE, 10.0, 1e-5, 1.0, 100),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_epsilon_is_that_of_dp_accounting(setting):
    kind, relation, noise, delta, rate, steps = setting
    ours = privacy.epsilon(
        noise, delta, rate, steps, accountant=kind, neighboring_relation=relation
    )
    # dp_accounting's PLD counts in contributions, of which replacing changes two.
    event = dp_accounting.GaussianDpEvent(
        2 * noise if (kind, relation) == ("pld", REPLACE) else noise
    )
    if rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(rate, event)
    accountants = {
        "pld": dp_accounting.pld.PLDAccountant,
        "rdp": dp_accounting.rdp.RdpAccountant,
    }
    theirs = accountants[kind](
        neighboring_relation=dp_accounting.NeighboringRelation[relation]
    )
    logging.getLogger("absl").setLevel(logging.ERROR)
    theirs.compose(event, steps)
    assert ours == pytest.approx(theirs.get_epsilon(delta), abs=1e-6)


def exact_delta(epsilon, noise):
    """Give δ of the Gaussian mechanism: Balle and Wang, 2018, theorem 8."""
    tail = math.exp(epsilon + log_ndtr(-0.5 / noise - epsilon * noise))
    return ndtr(0.5 / noise - epsilon * noise) - tail


@pytest.mark.parametrize("relation", [ADD, REPLACE, SPECIAL])
def test_unsampled_noise_is_in_units_of_the_sensitivity(relation):
    delta, noise, steps = 1e-5, 20.0, 400
    exact = brentq(
        lambda e: exact_delta(e, noise / math.sqrt(steps)) - delta, 0, 50, xtol=1e-12
    )
    options = {"neighboring_relation": relation}
    pld = privacy.epsilon(noise, delta, 1.0, steps, **options)
    assert exact <= pld <= exact + 1e-4
    rdp = privacy.epsilon(noise, delta, 1.0, steps, accountant="rdp", **options)
    assert exact <= rdp <= 1.1 * exact
    assert privacy.delta(exact, noise, 1.0, steps, **options) == pytest.approx(
        delta, rel=1e-3
    )
    assert privacy.delta(pld, noise, 1.0, steps, accountant="rdp", **options) > delta


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_one_sampled_step_against_an_integral(relation):
    # In units of the sensitivity: an example adds 1, or replaces -1/2 by 1/2.
    noise, rate, epsilon = 0.8, 0.2, 0.5
    x = np.linspace(-12, 12, 200_001)

    def density(shift):
        return (1 - rate) * norm.pdf(x, 0, noise) + rate * norm.pdf(x, shift, noise)

    pairs = {ADD: (0.0, 1.0), REPLACE: (-0.5, 0.5)}[relation]
    exact = max(
        np.sum(np.maximum(density(a) - math.exp(epsilon) * density(b), 0))
        * (x[1] - x[0])
        for a, b in (pairs, pairs[::-1])
    )
    ours = privacy.delta(epsilon, noise, rate, 1, neighboring_relation=relation)
    assert ours == pytest.approx(exact, rel=1e-4)


# Noise multiplier, δ, sampling rate, steps, and ε by RDP and by PRV of Opacus 1.6.0, as
# python -m benchmarks.per_example.opacus_epsilon prints them.
OPACUS = [
    (1.1, 1e-05, 0.05, 400, 6.181728062, 5.607357199),
    (0.7, 1e-05, 0.01, 1000, 5.421397067, 4.628654255),
    (2.0, 1e-06, 0.1, 200, 4.117558240, 3.816062687),
    (4.0, 1e-05, 0.2, 10000, 35.782695384, 33.771250589),
    (20.0, 1e-05, 1.0, 400, 4.728507067, 4.387413261),
]


@pytest.mark.parametrize("setting", OPACUS, ids=str)
def test_epsilon_is_that_of_opacus(setting):
    *mechanism, rdp, prv = setting
    ours = privacy.epsilon(*mechanism, accountant="rdp")
    # For fractional orders, dp_accounting adds the absolute values of a series, which
    # Opacus adds with their signs, and is larger. Where the best order
    # is whole, or nothing is sampled, they agree.
    is_whole = mechanism[0] in (1.1, 20.0)
    assert (
        ours == pytest.approx(rdp, abs=1e-6) if is_whole else rdp < ours < 1.005 * rdp
    )
    # PRV adds its stated error, 0.01, to an estimate of that error.
    assert 0 <= prv - privacy.epsilon(*mechanism) <= 0.02


@pytest.mark.parametrize("kind", ["pld", "rdp"])
def test_more_steps_a_larger_rate_and_less_noise_cost_more(kind):
    def epsilon(noise=2.0, delta=1e-5, rate=0.05, steps=100):
        return privacy.epsilon(noise, delta, rate, steps, accountant=kind)

    base = epsilon()
    assert epsilon(steps=200) > base + 0.1
    assert epsilon(rate=0.1) > base + 0.1
    assert epsilon(noise=1.7) > base + 0.1
    assert epsilon(delta=1e-6) > base + 0.1
    assert epsilon(steps=jnp.int32(100)) == base


@pytest.mark.parametrize(
    "kind, relation, target, rate, steps",
    [
        ("pld", ADD, 2.0, 0.05, 400),
        ("pld", REPLACE, 1.0, 0.1, 50),
        ("rdp", ADD, 2.0, 0.05, 400),
        ("rdp", ADD, 200.0, 0.1, 50),
        ("rdp", REPLACE, 0.3, 1.0, 50),
    ],
)
def test_noise_multiplier_is_the_least_that_keeps_epsilon(
    kind, relation, target, rate, steps
):
    options = {"accountant": kind, "neighboring_relation": relation}
    noise = privacy.noise_multiplier(target, 1e-5, rate, steps, **options)
    assert type(noise) is float
    assert privacy.epsilon(noise, 1e-5, rate, steps, **options) <= target
    assert privacy.epsilon(noise - 1.1e-4, 1e-5, rate, steps, **options) > target


def test_every_relation_of_the_sensitivity_has_a_text():
    texts = {
        str(privacy.guarantee(2.0, 1e-5, 1.0, 1, neighboring_relation=relation))
        for relation in CHANGES
    }
    assert len(texts) == len(CHANGES) == 3


@pytest.mark.parametrize("kind", ["pld", "rdp"])
def test_edges(kind):
    options = {"accountant": kind}
    assert privacy.epsilon(0.0, 1e-5, 0.1, 0, **options) == 0.0
    assert privacy.epsilon(0.0, 1e-5, 0.1, 1, **options) == math.inf
    assert privacy.epsilon(1e-200, 1e-5, 0.1, 1, **options) == math.inf
    assert privacy.epsilon(1e200, 1e-5, 0.1, 1, **options) < 0.01
    assert privacy.delta(1.0, 1.0, 0.1, 0, **options) == 0.0
    assert privacy.delta(1.0, 0.0, 0.1, 1, **options) == 1.0
    # By PLD, δ below the rounding is not claimed.
    least = privacy.delta(50.0, 10.0, 0.1, 1, **options)
    assert least == 1e-12 if kind == "pld" else least < 1e-12
    member = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    assert privacy.epsilon(
        5.0, 1e-5, 1.0, 1, neighboring_relation=member, **options
    ) == privacy.epsilon(5.0, 1e-5, 1.0, 1, **options)


GOOD = {"noise_multiplier": 1.0, "delta": 1e-5, "sampling_rate": 0.1, "steps": 10}
# The argument, wrong values, the error, and a part of its message.
WRONG = [
    ("noise_multiplier", [True, "1", None, 1j, jnp.float32(1)], TypeError, "noise_mul"),
    ("noise_multiplier", [-1.0, math.nan, math.inf], ValueError, "noise_multiplier"),
    ("epsilon", [True, "1", jnp.float32(1)], TypeError, "epsilon must"),
    ("epsilon", [0.0, -1.0, math.nan, math.inf], ValueError, "epsilon must"),
    ("delta", [True, None, jnp.float32(1e-5)], TypeError, "delta must"),
    ("delta", [0, 0.0, -1e-5, 1, 1.0, 2.0, math.nan], ValueError, "delta must"),
    ("sampling_rate", [True, "1", jnp.float32(0.1)], TypeError, "sampling_rate must"),
    ("sampling_rate", [0.0, -0.1, 1.1, math.nan], ValueError, "sampling_rate must"),
    ("steps", [True, 1.0, 1.5, "1", None, np.ones(2)], TypeError, "steps must"),
    ("steps", [-1], ValueError, "steps must"),
    ("accountant", ["PLD", None, "prv"], ValueError, "accountant must be one of 'pld'"),
    ("neighboring_relation", ["replace", None], ValueError, "'ADD_OR_REMOVE_ONE', "),
]


@pytest.mark.parametrize("name, values, error, message", WRONG, ids=str)
def test_wrong_arguments(name, values, error, message):
    epsilon = {"epsilon": 1.0}
    rest = {key: GOOD[key] for key in ("sampling_rate", "steps")}
    calls = [
        (privacy.epsilon, GOOD),
        (privacy.guarantee, GOOD),
        (privacy.noise_multiplier, epsilon | rest | {"delta": 1e-5}),
        (privacy.delta, epsilon | rest | {"noise_multiplier": 1.0}),
    ]
    optional = {"accountant", "neighboring_relation"}
    for function, good in calls:
        for value in values if name in good.keys() | optional else ():
            with pytest.raises(error, match=message):
                function(**(good | {name: value}))


@pytest.mark.parametrize("name", GOOD)
def test_traced_arguments(name):
    def traced(value):
        return privacy.epsilon(**(GOOD | {name: value}))

    with pytest.raises(TypeError, match=f"{name} must.*outside of jit"):
        jax.jit(traced)(GOOD[name])


def test_what_has_no_accountant():
    with pytest.raises(ValueError, match='REPLACE_ONE".*use accountant="pld"'):
        privacy.epsilon(
            1.0, 1e-5, 0.1, 10, accountant="rdp", neighboring_relation=REPLACE
        )
    with pytest.raises(ValueError, match=r"no privacy \(ε = .* by RDP\)"):
        privacy.epsilon(0.1, 1e-5, 0.1, 1000)
    with pytest.raises(ValueError, match="no privacy"):
        privacy.delta(1.0, 0.1, 0.1, 1000)
    with pytest.raises(ValueError, match="delta must be at least 1e-12"):
        privacy.epsilon(1.0, 1e-13, 0.1, 10)
    assert privacy.epsilon(1.0, 1e-13, 0.1, 10, accountant="rdp") > 1
    with pytest.raises(ValueError, match="epsilon must be at most 100"):
        privacy.noise_multiplier(101.0, 1e-5, 0.1, 10)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        privacy.noise_multiplier(1.0, 1e-5, 0.1, 0)
    with pytest.raises(ValueError, match="needs no noise and protects nobody"):
        privacy.noise_multiplier(1.0, 1e-3, 1e-5, 10)
    # dp_accounting would log a warning, and take a divergence below 0 for ε = 0.
    with pytest.raises(ValueError, match="beyond the precision"):
        privacy.epsilon(100.0, 1e-12, 1e-10, 10, accountant="rdp")
    assert privacy.epsilon(100.0, 1e-12, 1e-10, 10) < 1e-3


def test_an_old_dp_accounting_is_refused(monkeypatch):
    def refuse(*arguments):
        raise dp_accounting.UnsupportedEventError

    monkeypatch.setattr(dp_accounting.pld.PLDAccountant, "compose", refuse)
    with pytest.raises(ValueError, match="0.5 and later"):
        privacy.epsilon(2.0, 1e-5, 0.1, 10, neighboring_relation=REPLACE)


def test_a_missing_dp_accounting_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    for function in (privacy.epsilon, privacy.noise_multiplier, privacy.delta):
        with pytest.raises(ImportError, match=r'pip install "clipjax\[privacy\]"'):
            function(1.0, 0.5e-5 if function is not privacy.delta else 1.0, 0.1, 10)


def test_orders_that_are_left_out_are_not_logged(caplog):
    logging.getLogger("absl").setLevel(logging.WARNING)
    privacy.epsilon(1.0, 1e-5, 0.1, 1, accountant="rdp")
    assert not caplog.records


def test_the_text_of_a_guarantee():
    found = privacy.guarantee(2, 1e-5, 0.05, np.int64(400), accountant="rdp")
    assert found.epsilon == privacy.epsilon(2, 1e-5, 0.05, 400, accountant="rdp")
    assert found[1:] == (1e-5, 2.0, 0.05, 400, "rdp", ADD)
    assert [type(value) for value in found] == [float] * 4 + [int, str, str]
    assert str(found._replace(epsilon=2.0)) == (
        "(ε = 2.00, δ = 1e-05)-differential privacy for adding or removing one "
        "example, by RDP accounting of 400 steps of Poisson batches at rate 0.05 with "
        "noise multiplier 2"
    )
    assert "ε = 2.01," in str(found._replace(epsilon=2.0001))
    assert "ε = 0.00," in str(found._replace(epsilon=0.0))
    assert "ε = inf," in str(found._replace(epsilon=math.inf))
    whole = str(
        found._replace(sampling_rate=1.0, steps=1, neighboring_relation=REPLACE)
    )
    assert "for replacing one example, by RDP accounting of 1 step of all" in whole
