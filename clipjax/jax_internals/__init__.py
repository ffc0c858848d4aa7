"""What clipjax uses of JAX beyond the interface that JAX promises to keep.

No other file of clipjax imports or reads it, so that a new release of JAX can break
clipjax here only; ``tests/test_jax_internals.py`` has a test for each name.
"""

from .versions import unsupported

try:
    from .arrays import Tracer as Tracer
    from .arrays import auto_axes as auto_axes
    from .arrays import checkify as checkify
    from .arrays import device_memory as device_memory
    from .arrays import explicit_sharding as explicit_sharding
    from .arrays import identity as identity
    from .arrays import is_weakly_typed as is_weakly_typed
    from .arrays import manual_axes as manual_axes
    from .arrays import mesh_is_explicit as mesh_is_explicit
    from .arrays import mesh_size as mesh_size
    from .arrays import resharded as resharded
    from .arrays import spec_of as spec_of
    from .arrays import varying_axes as varying_axes
    from .jaxprs import Equation as Equation
    from .jaxprs import Program as Program
    from .jaxprs import dtype_of as dtype_of
    from .jaxprs import is_literal as is_literal
    from .jaxprs import is_variable as is_variable
    from .jaxprs import read_all as read_all
    from .jaxprs import shape_of as shape_of
    from .jaxprs import trace as trace
except ImportError as error:
    raise unsupported(error) from error
