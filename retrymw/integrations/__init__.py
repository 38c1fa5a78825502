"""Integrations: one module per framework, for what a pure outer middleware cannot see."""
