"""A small shop that shows how retrymw is used, and a drill that breaks its database on purpose.

Begin with the three apps, ``starlette_app``, ``fastapi_app`` and ``flask_app``: they have the few
lines that retrymw takes. ``shop``, ``model`` and ``database``, below them, know nothing of the web.
``python -m example_app --help`` says how to run it all.
"""
