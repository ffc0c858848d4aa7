"""Thresholds by rule of thumb: starting points, not results of a measurement."""

RULES_OF_THUMB = {
    "cnn": 5.0,
    "rnn": 1.0,
    "gru": 5.0,
    "lstm": 5.0,
    "deep-lstm": 10.0,
    "transformer": 1.0,
    "wgan-gp-critic": 10.0,
}


def rule_of_thumb(model: str) -> float:
    """Return the global L2 norm that is commonly tried first for a kind of model.

    These numbers are folklore: start from one, look at the norms that `clipjax.metrics`
    reports, and adjust it.

    Args:
        model: ``cnn`` (5), ``rnn`` (one layer: 1), ``gru`` and ``lstm`` (5; 10 for
            ``deep-lstm``), ``transformer`` (1) or ``wgan-gp-critic`` (10).

    Raises:
        ValueError: there is no rule of thumb for the model.

    Example:
        >>> import clipjax
        >>> clip = clipjax.clip_by_global_norm(
        ...     clipjax.thresholds.rule_of_thumb("transformer")
        ... )
    """
    if model not in RULES_OF_THUMB:
        known = ", ".join(map(repr, RULES_OF_THUMB))
        raise ValueError(f"model must be one of {known}, got {model!r}")
    return RULES_OF_THUMB[model]
