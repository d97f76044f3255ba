"""The HTTP surface: `app.create_app(cloud)` gives an ASGI app with the device and developer API under `/v1`."""
