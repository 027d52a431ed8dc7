"""What every test shares."""

from hypothesis import HealthCheck, settings

# The machine's speed is no property of the library, and a run must be repeatable.
settings.register_profile(
    "pyrosplice", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("pyrosplice")
