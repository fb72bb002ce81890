"""A web page on this machine: the forward process, samplers and restoration, step by step.

`server.serve` serves it on the loopback interface; `app.create_app` is the ASGI application, which
needs Starlette, of the extra `demo`. All mathematics is that of the library's public functions.
"""
