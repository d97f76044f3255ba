"""The phone: what an app embeds to take part, with nothing of Ray, TensorFlow or the cloud in it.

phone.py            the API that an app calls: register, feed data, status, infer, consent, pause, erase
participation.py    the FL phone manager: the state machine from check-in to evaluation, resumable after any kill
journal.py          assignments, consent and versions in the database; identity.py, delivery.py, versions.py use it
database.py         the SQLite file; examples.py: the examples in it, which never leave it
trainer.py          local training with LiteRT; client.py, download.py: HTTP
conditions.py       charging, idle, unmetered, battery; clock.py: time
collector.py        live sensors or the replay of a user's stream
fleet.py            many phones in one process, for load and demonstrations
"""
