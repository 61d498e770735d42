"""The verbs: `compress`, `evaluate`, `bench`, `inspect`, and the stretches of road that they are made of."""
