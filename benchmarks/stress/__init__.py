"""An app whose database is in trouble, under load: retrymw beside what people use instead."""
