"""Everything that answers: engine, HTTP face, packaging, client."""
