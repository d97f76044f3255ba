"""The lowering functions, one file a family of layers. Every module here is found and imported by the registry."""
