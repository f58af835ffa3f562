"""How often a step is tried again and how long it waits: one policy a kind of work, named in the asset decorators.

What is never tried again is `failures.py`. Finished work is kept between tries: in the ledger, as checkpoints, as partial rows.
"""

import dagster as dg

# A database that restarts, a service that says 429 or 5xx, a hub that does not answer: waits of about 20, 60 and 140 s.
OUTSIDE = dg.RetryPolicy(max_retries=3, delay=20, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)

# A preempted machine, a full region, a device that hung: waits of about 2 and 6 minutes, then from the last checkpoint.
TRAINING = dg.RetryPolicy(max_retries=2, delay=120, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
