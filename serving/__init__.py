"""Serving: engine, HTTP API in OpenAI's shapes, packaging, client."""
