"""Wrong arguments are refused when a clip is built, with their names and values."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clipjax
from clipjax import granularity, guards, norms, rules, thresholds

# For each function the arguments that it needs, and wrong values of one at a time.
NOT_NUMBERS = ["1", True, 1j, object(), b"1", float]
WRONG = {
    clipjax.clip_by: (
        {"threshold": 1.0},
        {
            "threshold": ["1", True, -1.0, np.nan, np.array([1.0, -1.0])],
            "granularity": ["leaf", None, granularity.leaf, norms.l2],
            "norm": ["l2", 2, norms.lp],
            "rule": ["hard", rules.Hard, None],
            "nonfinite": ["zero", None, guards.Zero],
            "axis_name": [3, 1.5, ["x"]],
            "name": [3, ""],
            "stand_in": [3, "gradient"],
        },
    ),
    clipjax.clip_entries: (
        {"threshold": 1.0},
        {
            "threshold": ["1", True, -1.0],
            "rule": ["soft", rules.Soft],
            "nonfinite": ["drop", guards.zero],
            "report": ["yes", 1],
            "axis_name": [3],
            "name": [3, ""],
        },
    ),
    clipjax.clip_by_value: (
        {"max_delta": 1.0},
        {"max_delta": ["1", True, -1.0, np.nan, {"a": -1.0}]},
    ),
    clipjax.clip_by_global_norm: (
        {"max_norm": 1.0},
        {"max_norm": [*NOT_NUMBERS, -1.0, np.nan], "axis_name": [3], "name": [3]},
    ),
    clipjax.clip_by_leaf_norm: (
        {"max_norm": 1.0},
        {
            "max_norm": [*NOT_NUMBERS, {"a": "b"}],
            "stacked": ["1", 1.5, True, -1, {"w": "1"}, {"w": -1}],
        },
    ),
    clipjax.clip_by_group_norm: (
        {"labels": {"w": "a"}, "max_norms": {"a": 1.0}},
        {"labels": [3, {"w": 3}], "max_norms": [3.0, {"a": "1"}, {"a": -1.0}]},
    ),
    clipjax.adaptive_grad_clip: (
        {"clipping": 0.1},
        {
            "clipping": ["1", -1, None],
            "eps": ["1", -1],
            "axis": ["0", 1.5, True, {"w": "0"}, (0, "1")],
            "stacked": ["1", -1],
        },
    ),
    clipjax.torch_clip_grad_norm: (
        {"max_norm": 1.0},
        {"max_norm": ["1", -1], "norm_type": ["2", 0.5, True]},
    ),
    clipjax.scale_by_l0_l1: (
        {"l0": 1.0, "l1": 1.0},
        {"l0": ["1", 0.0, -1.0, np.inf], "l1": ["1", -1.0, True]},
    ),
    clipjax.autoclip: (
        {},
        {"percentile": ["1", 101, -1], "window": [0, 1.5, "1", True]},
    ),
    clipjax.quantile_clip: (
        {},
        {"quantile": [1.1, "1"], "max_norm": ["1", -1], "minimum_history": ["1", -1]},
    ),
    clipjax.zclip: (
        {},
        {
            "alpha": [1.1, "1"],
            "z_thresh": ["1", -1],
            "max_grad_norm": ["1", -1, np.nan],
            "warmup_steps": ["1", 0],
            "mode": ["median", 3],
            "clip_option": ["median", None],
            "clip_factor": ["1", -1],
            "skip_update_on_spike": ["yes", 1],
        },
    ),
    clipjax.clip_update_by_history: ({}, {"sigma": ["1", -1], "window": [0, "1"]}),
    clipjax.norm_growth_limiter: ({}, {"growth": ["1", 0.9], "slowest_decay": [2]}),
    clipjax.adagc: ({}, {"lambda_abs": ["1", -1], "beta": [2], "minimum_of": ["all"]}),
    clipjax.aggc: (
        {},
        {
            "labels": [3],
            "alpha_low": ["1", -1],
            "beta": [2, "1"],
            "raises": [1],
            "min_norm": ["1"],
            "max_up_scale": [0.5],
            "max_down_scale": [2],
        },
    ),
    clipjax.gradient_stabilizer: ({}, {"gamma1": [2], "gamma2": ["1"], "eps": ["1"]}),
    clipjax.larc_clip: (
        {"learning_rate": 1.0},
        {
            "learning_rate": ["1", -1],
            "trust_coefficient": ["1", -1],
            "weight_decay": ["1", -1],
            "eps": ["1", -1],
        },
    ),
    clipjax.clippy: ({}, {"lambda_rel": ["1", -1], "lambda_abs": ["1", np.inf]}),
    clipjax.two_sided_clip: ({}, {"lower": ["1", -1], "upper": ["1"]}),
    clipjax.delta_clip: ({}, {"max_norm": ["1"], "delta": ["1", 2]}),
    clipjax.quantization_clip: (
        {},
        {"dtype": ["float128", jnp.float32, 3], "steps": ["1", 0]},
    ),
    clipjax.spectral_clip: ({}, {"threshold": ["1"], "iterations": ["1", 0, 1.5]}),
    clipjax.spam_clip: (
        {},
        {
            "inner": ["adam", 3],
            "theta": ["1", -1],
            "warmup_steps": ["1"],
            "period": [0],
        },
    ),
    clipjax.clip_by_momentum: (
        {"ratio": 5.0},
        {"ratio": ["1", -1], "max_norm": ["1", -1], "inner": ["adam", 3]},
    ),
    clipjax.stable_spam_clip: ({}, {f"gamma{i}": [2, "1"] for i in (1, 2, 3)}),
    clipjax.stable_update_clip: (
        {},
        {"b1": [2], "b2": ["1"], "eps": ["1"], "threshold": ["1", -1]},
    ),
    clipjax.acclip: ({}, {"b1": [2], "b2": ["1"], "alpha": [0, "1"], "eps": ["1"]}),
}
LEARNT = {
    "include_current": [1],
    "remember": ["all"],
    "minimum_history": [-1, "1"],
    "floor": [-0.1, np.inf],
    "cap": [np.nan, True],
}
WRONG |= {
    thresholds.quantile: (
        {"q": 0.5},
        LEARNT | {"q": [1.1], "window": [2.0, "1"], "factor": [-1]},
    ),
    thresholds.ema: (
        {"multiplier": 2.0},
        LEARNT | {"multiplier": [np.inf], "decay": [1.01]},
    ),
    thresholds.mean_plus_std: ({}, LEARNT | {"window": [0], "k": [-1]}),
    thresholds.log_mean_plus_std: ({}, LEARNT | {"k": [-1], "decay": [1.01]}),
    thresholds.running_extremum: ({}, LEARNT | {"largest": [1], "factor": [np.nan]}),
    thresholds.streaming_quantile: (
        {"q": 0.5},
        {"q": [-0.1], "rate": ["fast"], "cap": [-1]},
    ),
    thresholds.zscore: (
        {},
        {"z": [-1], "decay": [2], "warmup": [0], "mode": ["median"]},
    ),
    thresholds.moment_ratio: (
        {},
        {"mean_decay": [2], "square_decay": [None], "epsilon": [-1]},
    ),
    thresholds.warmup_statistic: (
        {"steps": 2},
        {"steps": [0, "1"], "factor": [-1], "quantile": [2]},
    ),
    thresholds.relative_to_previous: ({}, {"growth": [0.99], "slowest_decay": [1.1]}),
    thresholds.relative_to_params: (
        {"ratio": 1.0},
        {"ratio": ["1", -1], "floor": ["1", -1]},
    ),
    thresholds.from_loss: (
        {"threshold": 1.0},
        {
            "threshold": [-1],
            "relaxation": [-1],
            "tolerance": [0],
            "fast_decay": [1.5],
            "slow_decay": ["0.9"],
            "cap": [-1],
        },
    ),
    thresholds.polyak_cap: (
        {"learning_rate": 1.0},
        {"learning_rate": [-1], "lower_bound": [np.nan]},
    ),
    thresholds.from_smoothness: ({"l0": 1.0, "l1": 1.0}, {"l0": [0], "l1": [None]}),
    thresholds.estimated_smoothness: (
        {},
        {
            "decay": [2],
            "minimum_history": [1],
            "floor": [-1],
            "cap": [np.nan],
            "initial_step": [-1],
        },
    ),
    thresholds.relative_to_learning_rate: (
        {"step": 1.0},
        {"step": ["1"], "learning_rate": [-1], "proportional": [0]},
    ),
    thresholds.quantization_range: ({}, {"dtype": ["float128"], "steps": ["1"]}),
    thresholds.constant: ({"value": 1.0}, {"value": ["1", True, -1.0, max]}),
    thresholds.schedule: ({"function": abs}, {"function": [3, "linear"]}),
    thresholds.after: (
        {"steps": 1, "then": 1.0},
        {"steps": [1.5, -1], "then": ["1"], "before": [-1.0]},
    ),
    thresholds.scaled: (
        {"source": 1.0, "factor": 1.0},
        {"source": ["1"], "factor": ["1", -1, np.inf]},
    ),
    granularity.leaf: ({}, {"stacked": ["1", 1.5, True, -1]}),
    granularity.unit: ({}, {"axes": ["1", 1.5, True], "stacked": ["1", -1]}),
    granularity.group: ({"labels": "a"}, {"labels": [3, {"w": 3}]}),
    norms.lp: ({"p": 2}, {"p": ["2", 0.5, True, np.nan]}),
}


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_wrong_arguments_are_refused_by_name(make):
    needed, wrong = WRONG[make]
    make(**needed)
    for argument, values in wrong.items():
        # Units have axes, whatever a recipe calls them.
        name = "axes" if argument == "axis" else argument
        for value in values:
            with pytest.raises((TypeError, ValueError)) as raised:
                make(**needed | {argument: value})
            message = str(raised.value)
            place = make.__name__, argument, message
            assert re.match(rf".*\b{name}\b.* must be ", message), place
            assert message.count(f"got {shown(value)}") == 1, place


def shown(value):
    """Gives what a message shows of a value: of a container, the wrong entry."""
    if isinstance(value, dict):
        (value,) = value.values()
    if isinstance(value, np.ndarray):
        value = value.min().item()
    return repr(value)


def test_a_cap_below_the_floor_is_refused():
    for make, needed in [
        (thresholds.quantile, {"q": 0.5}),
        (thresholds.ema, {"multiplier": 2.0}),
        (thresholds.running_extremum, {}),
    ]:
        with pytest.raises(ValueError, match="cap must be a number of at least 2"):
            make(**needed, floor=2.0, cap=1.0)


def test_functions_that_were_not_called_are_refused_at_once():
    for make in (clipjax.clip_by, clipjax.clip_by_global_norm, clipjax.clip_by_value):
        for function in (thresholds.ema, thresholds.quantile, clipjax.zclip):
            with pytest.raises(
                TypeError, match=f"the function {function.__name__}: call"
            ):
                make(function)
    for parts in (
        {"granularity": granularity.leaf},
        {"norm": norms.lp},
        {"rule": rules.band},
    ):
        (name,) = parts
        with pytest.raises(TypeError, match=f"{name} must be a .*, got <function"):
            clipjax.clip_by(1.0, **parts)


GRADS = {"w": jnp.array([3.0, 4.0])}


def test_gradients_in_the_place_of_a_threshold_are_refused():
    with pytest.raises(TypeError, match="must be one number, .* got a table"):
        clipjax.clip_by_global_norm(GRADS)
    for what in (clipjax.clip_by_global_norm(1.0), optax.sgd(1.0)):
        with pytest.raises(TypeError, match="must be .*, got <"):
            clipjax.clip_by_global_norm(what)


def test_state_and_gradients_the_wrong_way_round_are_refused():
    for clip in (
        clipjax.clip_by_global_norm(1.0),
        clipjax.clip_by_value(1.0),
        clipjax.spectral_clip(1.0),
        clipjax.zclip(),
    ):
        state = clip.init(GRADS)
        for update in (clip.update, jax.jit(clip.update)):
            with pytest.raises(TypeError, match="updates first and the state second"):
                update(state, GRADS)
        for wrong in (GRADS, GRADS["w"], [1.0]):
            with pytest.raises(ValueError, match="state is not that of"):
                clip.update(GRADS, wrong)


def test_parts_that_do_not_go_together_are_refused():
    for make, message in [
        (lambda: clipjax.clip_entries(thresholds.ema(2.0)), "learns from the norms"),
        (lambda: clipjax.clip_by(thresholds.quantization_range()), "single entries"),
        (lambda: clipjax.spectral_clip(thresholds.quantization_range()), "single entr"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="minimum needs at least one threshold"):
        thresholds.minimum()


def test_what_a_clip_needs_is_asked_for_at_the_step():
    for clip, who in [
        (clipjax.adaptive_grad_clip(0.1), "relative_to_params"),
        (clipjax.larc_clip(0.1), "larc_clip"),
        (clipjax.larc_clip(0.1, weight_decay=0.1), "larc_clip"),
        (clipjax.clippy(), "clippy"),
        (clipjax.clip_by(thresholds.estimated_smoothness()), "estimated_smoothness"),
    ]:
        with pytest.raises(ValueError, match=f"{who} needs params: call update"):
            clip.update(GRADS, clip.init(GRADS))
    clip = clipjax.larc_clip()
    with pytest.raises(ValueError, match="larc_clip needs learning_rate: call update"):
        clip.update(GRADS, clip.init(GRADS), GRADS)
