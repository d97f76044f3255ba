"""The cloud without HTTP and without Ray: models made durable, apps, credentials.

`model.DurableModel` is one model's coordinator with everything that must last in the object store. `hosts` says who
holds such objects: this process, or (in `actors`) Ray. `http` puts the device and developer API in front of it.
"""
