"""Commands that wait for a database, examine it, and explain what it says."""
