"""How unit tests that try many examples do that."""

from hypothesis import settings

# What a busy machine takes for one example says nothing; how long the fuzz tests search they say themselves.
settings.register_profile("units", deadline=None)
settings.load_profile("units")
