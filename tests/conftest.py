"""What all tests share: how hypothesis searches, and that TensorFlow computes an operator on one thread.

A worker of the tests has one core; and the simulation's results would depend on the number of threads.

`fast` draws the same examples on every run, so that a failure is found again by running the test again. A wider search:
`pytest --hypothesis-profile=thorough`.
"""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

settings.register_profile("fast", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("fast"), derandomize=False, max_examples=2000)
settings.load_profile("fast")
