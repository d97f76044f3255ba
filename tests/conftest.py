"""What all tests share: how hypothesis searches.

`fast` draws the same examples on every run, so that a failure is found again by running the test again. A wider search:
`pytest --hypothesis-profile=thorough`.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("fast", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("fast"), derandomize=False, max_examples=2000)
settings.load_profile("fast")
