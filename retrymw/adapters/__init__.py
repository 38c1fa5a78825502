"""Adapters: one module per database layer, each giving the middleware its request-scoped state."""
