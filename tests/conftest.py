"""A hostile configuration: what passes here passes in anybody's set-up."""

import os

# Before jax is imported: eight devices where there is one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
    ]
).strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Up to a tenth of a file's time: no lines of source in compiled programs, whose results
# are the same without.
jax.config.update("jax_traceback_in_locations_limit", 0)


def pytest_configure(config):
    """Compile what two workers, or the last run and this one, share only once.

    Of the time of a first run, four fifths are compilation. The key of a program is its
    text, with the versions of JAX and XLA; ``pytest --cache-clear`` starts anew.
    """
    if not hasattr(config, "cache"):  # pytest -p no:cacheprovider
        return
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A worker may read what another is just writing; it then compiles by itself.
    half_written = "ignore:Error reading persistent compilation cache entry"
    config.addinivalue_line("filterwarnings", half_written)


hypothesis.settings.register_profile("local", deadline=None, max_examples=40)
hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=40, derandomize=True, database=None
)
hypothesis.settings.load_profile("ci" if "CI" in os.environ else "local")
